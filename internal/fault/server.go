package fault

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/protocol"
)

// ServerError describes a failure between this program and a server, instead of
// the driver's message. It never shows a secret.
type ServerError struct {
	What   string // with the server's name, address and variable
	Remedy string
	err    error
}

// Error returns both on one line.
func (e *ServerError) Error() string { return e.What + "; " + e.Remedy }

// Unwrap returns the driver's error.
func (e *ServerError) Unwrap() error { return e.err }

const seeDoctor = "see processor doctor"

// RedisError describes that Redis is unreachable. Any other error, and any reply
// of Redis, is returned unchanged. It is for calls that use Redis only.
func RedisError(cfg config.Redis, err error) error {
	var failure *protocol.Failure
	if !errors.As(err, &failure) || failure.Kind != protocol.Unknown || failure.Code != "" || errors.Is(err, context.Canceled) {
		return err
	}
	return &ServerError{What: "Redis at " + cfg.URL.Addresses() + " (REDIS_URL) " + silence(failure), Remedy: seeDoctor, err: err}
}

// PostgresError describes that Postgres is unreachable, or rejects role, password
// or database, which is a configuration error with exit code 3. Any other error is
// returned unchanged. It is for calls that use Postgres only. variable is the one
// the URL was read from.
func PostgresError(variable string, url config.PostgresURL, err error) error {
	var said *ServerError
	if err == nil || errors.As(err, &said) || errors.Is(err, context.Canceled) {
		return err
	}
	where := "Postgres at " + postgresAddresses(url) + " (" + variable + ") "
	var answer *pgconn.PgError
	var failed *pgconn.ConnectError
	connecting := errors.As(err, &failed)
	answered := errors.As(err, &answer)
	switch {
	case answered && refusesLogin(answer.Code, connecting):
		return &Error{Code: Config, Err: &ServerError{
			What: where + "refused the connection: " + answer.Message, Remedy: "correct " + variable, err: err,
		}}
	case answered && connecting:
		return &ServerError{What: where + "accepts no session: " + answer.Message, Remedy: seeDoctor, err: err}
	case connecting:
		return &ServerError{What: where + silence(failed), Remedy: seeDoctor, err: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &ServerError{What: where + silence(context.DeadlineExceeded), Remedy: seeDoctor, err: err}
	}
	return err
}

// FirstPostgresError is PostgresError for the first query of the schema. A
// failure that does not concern role or database concerns the schema: exit code 5.
func FirstPostgresError(url config.PostgresURL, err error) error {
	err = PostgresError("POSTGRES_URL", url, err)
	var said *ServerError
	var failure *protocol.Failure
	if !errors.As(err, &said) && errors.As(err, &failure) && failure.Kind == protocol.Misconfigured {
		return Exitf(Schema, "%w; run processor migrate up", err)
	}
	return err
}

// refusesLogin reports whether an SQLSTATE means that the server rejects the
// role, password or database of the URL.
func refusesLogin(code string, connecting bool) bool {
	return strings.HasPrefix(code, "28") || strings.HasPrefix(code, "3D") ||
		connecting && code == "42501" // no right to connect to the database
}

func postgresAddresses(url config.PostgresURL) string {
	cfg, err := pgconn.ParseConfig(url.Reveal())
	if err != nil {
		return url.String()
	}
	list := []string{postgresAddress(cfg.Host, cfg.Port)}
	for _, f := range cfg.Fallbacks {
		if a := postgresAddress(f.Host, f.Port); !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return strings.Join(list, ", ")
}

// PostgresDatabase is addresses and database of a URL, without user or password.
func PostgresDatabase(url config.PostgresURL) string {
	cfg, err := pgconn.ParseConfig(url.Reveal())
	if err != nil {
		return url.String()
	}
	return postgresAddresses(url) + "/" + cfg.Database
}

func postgresAddress(host string, port uint16) string {
	if strings.HasPrefix(host, "/") {
		return host // a socket's folder
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// silence describes why there is no connection.
func silence(err error) string {
	causes := Causes(err)
	verb := "does not answer: "
	if strings.Contains(causes, "tls:") || strings.Contains(causes, "x509:") {
		verb = "cannot be connected to: "
	}
	return verb + causes
}

// Causes returns the innermost errors of a failed network call, each once,
// without the addresses that drivers add.
func Causes(err error) string {
	var list []string
	var walk func(err error)
	walk = func(err error) {
		var text string
		var own net.Error
		switch e := err.(type) { //nolint:errorlint // each layer is inspected separately
		case *net.DNSError:
			text = e.Err
		case syscall.Errno:
			text = e.Error()
		case interface{ Unwrap() []error }:
			for _, inner := range e.Unwrap() {
				walk(inner)
			}
			return
		default:
			if inner := errors.Unwrap(err); inner != nil {
				walk(inner)
				return
			}
			text = err.Error()
			if errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &own) && own.Timeout() {
				text = "no answer in time"
			}
		}
		if !slices.Contains(list, text) {
			list = append(list, text)
		}
	}
	walk(err)
	return strings.Join(list, ", ")
}
