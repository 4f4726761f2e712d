package schema

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
)

// CatalogFile is where the catalogue that this binary needs is kept.
const CatalogFile = "catalog.json"

// LiveCatalogJSON returns the live catalogue in the form of CatalogFile.
func LiveCatalogJSON(ctx context.Context, tx pgx.Tx) ([]byte, error) {
	c, err := readCatalog(ctx, tx)
	if err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(c, "", "  ")
	return append(text, '\n'), err
}

// NeededTables lists the tables this binary needs, without views.
func NeededTables() ([]string, error) {
	c, err := neededCatalog()
	var names []string
	for name, t := range c.Tables {
		if !t.View {
			names = append(names, name)
		}
	}
	return names, err
}

// LockTwice acquires the migration lock twice in one session, as two clients of a
// pooler that lends both the same server session would.
func LockTwice(ctx context.Context, url string) (err error) {
	s, err := openMigrationSession(ctx, url, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return errors.Join(s.lock(ctx, time.Second), s.lock(ctx, time.Second))
}
