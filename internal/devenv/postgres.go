package devenv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// pgAnswerTimeout bounds one attempt to connect while the server comes up.
const pgAnswerTimeout = 2 * time.Second

type postgresKind struct {
	bin  string // the folder of the Postgres programs
	args []string
}

func findPostgres(args []string) (postgresKind, error) {
	bin, err := findPostgresBin()
	return postgresKind{bin: bin, args: args}, err
}

func (postgresKind) name() string { return "postgres" }

func (postgresKind) url(addr string) string {
	return "postgres://postgres@" + addr + "/postgres?sslmode=disable"
}

func (k postgresKind) prepare(ctx context.Context, data string, user *account) error {
	cmd := exec.CommandContext(ctx, filepath.Join(k.bin, "initdb"),
		"--pgdata", data,
		"--username", "postgres",
		"--auth", "trust", // only loopback can connect
		"--encoding", "UTF8",
		"--locale", "C",
		"--no-sync", // of the empty cluster only; the server itself syncs
	)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = filepath.Dir(data), serverEnviron(filepath.Dir(data)), user.attributes()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("create Postgres cluster: %w; initdb says:\n%s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (k postgresKind) command(data string, port int) []string {
	argv := []string{filepath.Join(k.bin, "postgres"), "-D", data}
	for _, setting := range []string{
		"listen_addresses=127.0.0.1",
		"port=" + strconv.Itoa(port),
		"unix_socket_directories=", // their paths are limited to 100 characters
		"fsync=on",
		"synchronous_commit=on",
		"full_page_writes=on",
		"max_connections=200",
		"shared_buffers=256MB",
		"track_commit_timestamp=on",
		"dynamic_shared_memory_type=mmap", // inside the data folder: a kill leaves nothing in /dev/shm
		"timezone=UTC",
		"log_timezone=UTC",
		"logging_collector=off",
	} {
		argv = append(argv, "-c", setting)
	}
	return append(argv, k.args...)
}

func (postgresKind) answers(ctx context.Context, url string, _ int, data string) error {
	ctx, cancel := context.WithTimeout(ctx, pgAnswerTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	var folder string
	if err := conn.QueryRow(ctx, "select current_setting('data_directory')").Scan(&folder); err != nil {
		return fmt.Errorf("ask Postgres who it is: %w", err)
	}
	if folder != data {
		return fmt.Errorf("another Postgres answers at %s", url)
	}
	return nil
}

// SIGINT is Postgres' fast shutdown: sessions are ended, data is flushed.
func (postgresKind) stopSignal() syscall.Signal { return syscall.SIGINT }

// SIGQUIT is its immediate shutdown, which still gives back the System V
// segment that every SIGKILL leaks.
func (postgresKind) lastSignal() string { return "QUIT" }

// The seventh line of postmaster.pid names the System V segment, "key id".
// An orderly end removes the file, so a file that is left marks a leak.
func (postgresKind) discard(data string) error {
	lines, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read postmaster.pid: %w", err)
	}
	const segment = 6 // by Postgres' LOCK_FILE_LINE_SHMEM_KEY, counted from 0
	all := strings.Split(string(lines), "\n")
	if len(all) <= segment {
		return nil
	}
	key := strings.Fields(all[segment])
	if len(key) != 2 {
		return nil
	}
	if out, err := exec.Command("ipcrm", "-m", key[1]).CombinedOutput(); err != nil {
		return fmt.Errorf("remove shared memory of killed Postgres: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
