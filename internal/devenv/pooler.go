package devenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// poolerKind is PgBouncer in session mode before a Postgres of ours.
type poolerKind struct {
	program string
	port    int // of Postgres
}

// FindPgBouncer returns the program, which Debian keeps off the PATH of most users; a
// MissingError where it is not installed.
func FindPgBouncer() (string, error) {
	if path, err := exec.LookPath("pgbouncer"); err == nil {
		return path, nil
	}
	if path := "/usr/sbin/pgbouncer"; executable(path) {
		return path, nil
	}
	return "", &MissingError{Program: "pgbouncer", Package: "pgbouncer"}
}

func (poolerKind) name() string { return "pgbouncer" }

func (poolerKind) url(addr string) string {
	return "postgres://postgres@" + addr + "/postgres?sslmode=disable"
}

func (poolerKind) prepare(context.Context, string, *account) error { return nil }

// The configuration is written at each start, when the port is known.
func (k poolerKind) command(data string, port int) []string {
	file := filepath.Join(filepath.Dir(data), "pgbouncer.ini")
	text := PgBouncerConfig("host=127.0.0.1 user=postgres port="+strconv.Itoa(k.port), port, "session",
		"default_pool_size = 150",
		"server_login_retry = 1", // by default nobody is served for 15 s after Postgres came back
	)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil { //nolint:gosec // another user reads it
		return []string{k.program, err.Error()} // which it says is no configuration
	}
	return []string{k.program, file}
}

// PgBouncerConfig is the configuration of one that listens on a loopback port before a
// server, in a pool mode; more are further lines.
func PgBouncerConfig(server string, port int, mode string, more ...string) string {
	return strings.Join(append([]string{
		"[databases]",
		"* = " + server,
		"[pgbouncer]",
		"listen_addr = 127.0.0.1",
		"listen_port = " + strconv.Itoa(port),
		"unix_socket_dir =",
		"auth_type = any",
		"pool_mode = " + mode,
	}, append(more, "")...), "\n")
}

func (k poolerKind) answers(ctx context.Context, url string, _ int, _ string) error {
	ctx, cancel := context.WithTimeout(ctx, pgAnswerTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connect to PgBouncer: %w", err)
	}
	return conn.Close(ctx)
}

func (poolerKind) stopSignal() syscall.Signal { return syscall.SIGTERM }

func (poolerKind) lastSignal() string { return "KILL" }

func (poolerKind) discard(string) error { return nil }
