package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Audit records manual changes.
type Audit struct {
	pool    *pgxpool.Pool
	timeout time.Duration
}

// NewAudit returns the audit.
func NewAudit(pool *pgxpool.Pool, timeout time.Duration) *Audit {
	return &Audit{pool: pool, timeout: timeout}
}

// Note adds one row: who did what to what, how many it changed, and detail for
// later.
func (a *Audit) Note(ctx context.Context, who, action, target string, count int, detail map[string]any) error {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	text, err := json.Marshal(detail)
	if err != nil {
		return fmt.Errorf("record %s: %w", action, err)
	}
	_, err = a.pool.Exec(ctx, `
insert into processor.audit (who, action, target, count, detail)
values ($1, $2, $3, $4, $5)`, who, action, target, count, text)
	return failure("record "+action, err)
}
