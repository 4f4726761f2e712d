package modules

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

// ServerError says in words what is wrong between this program and a server, in
// the place of what a driver says. It never shows a secret.
type ServerError struct {
	What   string // with the server's name, address and variable
	Remedy string
	err    error
}

// Error is both on one line.
func (e *ServerError) Error() string { return e.What + "; " + e.Remedy }

// Unwrap is what the driver said.
func (e *ServerError) Unwrap() error { return e.err }

const seeDoctor = "see processor doctor"

// RedisError puts into words that Redis does not answer. Any other error, and
// what Redis does answer, stays as it is. It is for calls that ask Redis only.
func RedisError(cfg config.Redis, err error) error {
	var failure *protocol.Failure
	if !errors.As(err, &failure) || failure.Kind != protocol.Unknown || failure.Code != "" || errors.Is(err, context.Canceled) {
		return err
	}
	return &ServerError{What: "Redis at " + cfg.URL.Addresses() + " (REDIS_URL) " + silence(failure), Remedy: seeDoctor, err: err}
}

// PostgresError puts into words that Postgres does not answer, or refuses role,
// password or database; that is a configuration to be corrected, and exit code 3.
// Any other error stays as it is. It is for calls that ask Postgres only. The
// variable is the one the URL was read from.
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
		return &ExitError{Code: codeConfig, Err: &ServerError{
			What: where + "refuses: " + answer.Message, Remedy: "correct " + variable, err: err,
		}}
	case answered && connecting:
		return &ServerError{What: where + "takes no session: " + answer.Message, Remedy: seeDoctor, err: err}
	case connecting:
		return &ServerError{What: where + silence(failed), Remedy: seeDoctor, err: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &ServerError{What: where + silence(context.DeadlineExceeded), Remedy: seeDoctor, err: err}
	}
	return err
}

// FirstPostgresError is PostgresError for the first question that is asked of
// Postgres. What is no matter of role or database, and refused all the same, is one
// of the schema: exit code 5.
func FirstPostgresError(url config.PostgresURL, err error) error {
	err = PostgresError("POSTGRES_URL", url, err)
	var said *ServerError
	var failure *protocol.Failure
	if !errors.As(err, &said) && errors.As(err, &failure) && failure.Kind == protocol.Misconfigured {
		return exitError(codeSchema, "%w; run processor migrate up", err)
	}
	return err
}

// refusesLogin tells by SQLSTATE whether the URL names a role, password or
// database that the server does not take.
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

func postgresAddress(host string, port uint16) string {
	if strings.HasPrefix(host, "/") {
		return host // a socket's folder
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// silence says what keeps a connection from coming about.
func silence(err error) string {
	causes := Causes(err)
	verb := "does not answer: "
	if strings.Contains(causes, "tls:") || strings.Contains(causes, "x509:") {
		verb = "cannot be connected to: "
	}
	return verb + causes
}

// Causes is the innermost of an error that a network call came back with, and of
// several, each once: without the addresses that drivers put around them.
func Causes(err error) string {
	var list []string
	var walk func(err error)
	walk = func(err error) {
		var text string
		var own net.Error
		switch e := err.(type) { //nolint:errorlint // each layer is looked at by itself
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
