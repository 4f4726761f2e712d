package store

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Server is what Postgres says of itself, in a session like those that commit.
type Server struct {
	Version           string
	SynchronousCommit string // "off" forgets commits that were acknowledged
	Fsync             bool
}

const serverSQL = `
select current_setting('server_version'),
  current_setting('synchronous_commit'),
  current_setting('fsync') = 'on'`

// AskServer asks the server about itself.
func AskServer(ctx context.Context, pool *pgxpool.Pool) (Server, error) {
	var s Server
	err := pool.QueryRow(ctx, serverSQL).Scan(&s.Version, &s.SynchronousCommit, &s.Fsync)
	return s, failure("ask Postgres about itself", err)
}

// SchemaVersion is the newest migration that was applied to the database, 0
// where none was.
func SchemaVersion(ctx context.Context, pool *pgxpool.Pool) (int64, error) {
	list, err := migrateStatus(ctx, pool)
	if err != nil {
		return 0, failure("read the schema version", err)
	}
	newest := int64(0)
	for _, m := range list {
		if m.AppliedAt != nil {
			newest = max(newest, m.Version)
		}
	}
	return newest, nil
}
