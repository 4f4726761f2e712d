package store

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// rotationGrace is for how long a server may refuse what the file says.
const rotationGrace = 5 * time.Minute

// loginRotates is the routine of a refused login that the file may yet mend.
const loginRotates = "processor/rotation"

// rotation has new connections use the user and password that a file holds by then.
// A password is often changed in the server first: until the file follows, a login
// that was accepted before is refused, which is an outage and no wrong configuration.
type rotation struct {
	read func() (string, error)
	now  func() time.Time

	mu       sync.Mutex
	last     *pgx.ConnConfig // that could be read
	accepted bool            // a login was, once
	refused  time.Time       // since when no login was accepted
}

func (r *rotation) install(pc *pgxpool.Config) {
	pc.BeforeConnect, pc.AfterConnect = r.before, r.after
	ends := pc.ConnConfig.OnPgError
	pc.ConnConfig.OnPgError = func(conn *pgconn.PgConn, err *pgconn.PgError) bool {
		r.judge(err)
		return ends(conn, err)
	}
}

func (r *rotation) before(_ context.Context, cc *pgx.ConnConfig) error {
	text, err := r.read()
	r.mu.Lock()
	defer r.mu.Unlock()
	// A file that is about to be replaced may be empty or away for a moment.
	if err == nil && text != "" {
		if now, err := pgx.ParseConfig(text); err == nil {
			r.last = now
		}
	}
	if r.last != nil {
		cc.User, cc.Password = r.last.User, r.last.Password
	}
	return nil
}

func (r *rotation) after(context.Context, *pgx.Conn) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.accepted, r.refused = true, time.Time{}
	return nil
}

// judge marks the refusal of a login as an outage, for a while.
func (r *rotation) judge(err *pgconn.PgError) {
	// No login with this password, or of this role.
	if !slices.Contains([]string{"28P01", "28000"}, err.Code) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refused.IsZero() {
		r.refused = r.now()
	}
	until := r.refused.Add(rotationGrace)
	if !r.accepted || r.now().After(until) {
		return
	}
	err.Routine = loginRotates
	err.Message += fmt.Sprintf("; replace the content of POSTGRES_URL_FILE, which is read for each connection, until %s", until.UTC().Format(time.TimeOnly))
}
