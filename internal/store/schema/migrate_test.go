package schema_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/migrations"
)

// migrationNames are those of the files, in their order.
var migrationNames, _ = fs.Glob(migrations.FS, "*.sql")

// emptyDatabase creates an empty, unmigrated database for one test, in any world.
func emptyDatabase(tb testing.TB) string {
	tb.Helper()
	testenv.SameInEveryWorld(tb)
	return testenv.Postgres(tb)
}

// unmigrated creates an unmigrated database of the world.
func unmigrated(tb testing.TB) string {
	tb.Helper()
	return testenv.Postgres(tb, testenv.WithTemplate("unmigrated", func(context.Context, string) error { return nil }))
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func execute(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	_, err := conn.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
}

func migrate(t *testing.T, url string, options ...schema.Option) []string {
	t.Helper()
	applied, err := schema.Migrate(t.Context(), url, slog.New(slog.DiscardHandler), options...)
	require.NoError(t, err)
	return applied
}

const childURL = "MIGRATE_TEST_URL"

// TestMigrateChild is the body of the processes of the next test.
func TestMigrateChild(t *testing.T) {
	url := os.Getenv(childURL)
	if url == "" {
		t.Skip("runs only as a child process")
	}
	for _, name := range migrate(t, url) {
		fmt.Println("applied", name)
	}
	report, err := schema.VerifyURL(t.Context(), url)
	require.NoError(t, err)
	require.NoError(t, report.Err())
}

func TestProcessesThatStartAtOnceMigrateOnce(t *testing.T) {
	for _, processes := range []int{2, 5, 20} {
		t.Run(fmt.Sprint(processes), func(t *testing.T) {
			url := emptyDatabase(t)
			outputs := make([]bytes.Buffer, processes)
			children := make([]*os.File, 0, processes)
			commands := make([]*exec.Cmd, processes)
			for i := range commands {
				// Each child blocks on its standard input until all have started.
				r, w, err := os.Pipe()
				require.NoError(t, err)
				children = append(children, w)
				cmd := command(t, url)
				cmd.Stdin, cmd.Stdout, cmd.Stderr = r, &outputs[i], &outputs[i]
				require.NoError(t, cmd.Start())
				require.NoError(t, r.Close())
				commands[i] = cmd
			}
			begin := time.Now()
			for _, w := range children {
				require.NoError(t, w.Close())
			}
			var all strings.Builder
			for i, cmd := range commands {
				require.NoError(t, cmd.Wait(), "%s", &outputs[i])
				all.Write(outputs[i].Bytes())
			}
			for _, name := range migrationNames {
				require.Equal(t, 1, strings.Count(all.String(), "applied "+name), "%s", all.String())
			}
			var recorded int
			require.NoError(t, connect(t, url).QueryRow(t.Context(),
				`select count(*) from processor.goose_db_version where version_id > 0`).Scan(&recorded))
			require.Equal(t, len(migrationNames), recorded)
			t.Logf("%d processes took %s", processes, time.Since(begin).Round(time.Millisecond))
		})
	}
}

func command(t *testing.T, url string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c",
		`cat; exec "$0" -test.run '^TestMigrateChild$' -test.count 1`, self)
	cmd.Env = append(os.Environ(), childURL+"="+url)
	return cmd
}

func TestARoleThatMayRunTheRetentionMayAfterTheMigration(t *testing.T) {
	url := emptyDatabase(t)
	migrate(t, url)
	conn := connect(t, url)
	execute(t, conn, `
grant execute on function processor.expire(text, text, interval, text) to pg_monitor;
drop function processor.expire_page(text, text, text, interval, integer, text), processor.expire_timing_page(interval, bigint, bigint, integer);
delete from processor.goose_db_version where version_id = 13`)
	require.Equal(t, []string{"0013_retention_pages.sql"}, migrate(t, url))
	for role, want := range map[string]bool{"pg_monitor": true, "pg_checkpoint": false} {
		for _, f := range []string{"expire_page(text, text, text, interval, integer, text)", "expire_timing_page(interval, bigint, bigint, integer)"} {
			var may bool
			require.NoError(t, conn.QueryRow(t.Context(), "select has_function_privilege($1, 'processor.' || $2, 'execute')", role, f).Scan(&may))
			require.Equal(t, want, may, "%s may run %s", role, f)
		}
	}
}
