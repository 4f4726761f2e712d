package testenv

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/devenv"
)

// PgBouncer starts one in front of a database and returns its URL; mode is session,
// transaction or statement. The test is skipped where PgBouncer is not installed.
func PgBouncer(tb testing.TB, target, mode string) string {
	tb.Helper()
	program, err := devenv.FindPgBouncer()
	if err != nil {
		tb.Skip("SKIPPED: pgbouncer is not installed, so poolers were not tried")
	}
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	port, err := devenv.FreePort()
	must(err)
	config, err := pgx.ParseConfig(target)
	must(err)
	server := fmt.Sprintf("host=%s port=%d user=%s", config.Host, config.Port, config.User)
	if config.Password != "" {
		server += " password='" + config.Password + "'"
	}
	dir, err := os.MkdirTemp("", "pgbouncer") // another user reads it
	must(err)
	tb.Cleanup(func() { must(os.RemoveAll(dir)) })
	must(os.Chmod(dir, 0o755)) //nolint:gosec // as above
	file := filepath.Join(dir, "pgbouncer.ini")
	must(os.WriteFile(file, []byte(devenv.PgBouncerConfig(server, port, mode)), 0o644)) //nolint:gosec // as above
	args := []string{file}
	if os.Geteuid() == 0 {
		args = []string{"-u", "nobody", file}
	}
	var output bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &output, &output
	must(cmd.Start())
	tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	pooled := fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s", config.User, port, config.Database)
	Wait(tb, 10*time.Second, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		conn, err := pgx.Connect(ctx, pooled)
		if err != nil {
			return fmt.Errorf("pgbouncer does not answer: %w", err)
		}
		return conn.Close(ctx)
	})
	return pooled
}
