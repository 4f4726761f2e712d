package store

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Server is Postgres' configuration, in a session like those that commit.
type Server struct {
	Version           string
	SynchronousCommit string // with "off" a crash loses acknowledged commits
	Fsync             bool
	Encoding          string // of the database
}

const serverSQL = `
select current_setting('server_version'),
  current_setting('synchronous_commit'),
  current_setting('fsync') = 'on',
  current_setting('server_encoding')`

// AskServer reads the server's configuration.
func AskServer(ctx context.Context, pool *pgxpool.Pool) (Server, error) {
	var s Server
	err := pool.QueryRow(ctx, serverSQL).Scan(&s.Version, &s.SynchronousCommit, &s.Fsync, &s.Encoding)
	return s, failure("ask Postgres about itself", err)
}

// SchemaVersion returns the newest migration applied to the database, 0 for
// none.
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
