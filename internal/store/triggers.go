package store

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// insertTriggersSQL finds the triggers of a platform that can keep a row out of
// positions. TimescaleDB's own sees no row of ours.
const insertTriggersSQL = `
select coalesce(string_agg(tgname, ', ' order by tgname), '')
from pg_trigger
where tgrelid = to_regclass('public.positions') and not tgisinternal and tgenabled in ('O', 'A')
  and tgtype & 7 = 7 /* row, before, insert */ and tgname <> 'ts_insert_blocker'`

// triggersEvery is how often a writer looks for them: they may be created while it writes.
const triggersEvery = 5 * time.Second

// insertTriggers knows whether rows have to be counted.
type insertTriggers struct {
	mu    sync.Mutex
	names string
	at    time.Time
}

func (t *insertTriggers) now(ctx context.Context, conn *pgx.Conn) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Since(t.at) < triggersEvery {
		return t.names, nil
	}
	if err := conn.QueryRow(ctx, insertTriggersSQL).Scan(&t.names); err != nil {
		return "", err
	}
	t.at = time.Now()
	return t.names, nil
}
