package store

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Server is Postgres' configuration, in a session like those that commit.
type Server struct {
	Version           string
	Number            int    // as 150004 of 15.4
	SynchronousCommit string // with "off" a crash loses acknowledged commits
	Fsync             bool
	Encoding          string // of the database
}

// OldestServer is the first major version of Postgres that has what is used here.
const OldestServer = 15

const serverSQL = `
select current_setting('server_version'),
  current_setting('server_version_num')::int,
  current_setting('synchronous_commit'),
  current_setting('fsync') = 'on',
  current_setting('server_encoding')`

// AskServer reads the server's configuration.
func AskServer(ctx context.Context, pool *pgxpool.Pool) (Server, error) {
	var s Server
	err := pool.QueryRow(ctx, serverSQL).Scan(&s.Version, &s.Number, &s.SynchronousCommit, &s.Fsync, &s.Encoding)
	return s, failure("ask Postgres about itself", err)
}
