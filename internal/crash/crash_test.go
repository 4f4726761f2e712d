package crash_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/trmtracking/processor/internal/crash"
)

// how and where say to the test's own program, run again, how to end and where
// its dumps go.
const (
	how   = "CRASH_TEST_HOW"
	where = "CRASH_TEST_DIR"
)

func TestMain(m *testing.M) {
	if os.Getenv(how) != "" {
		victim()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func configOf(dir string) crash.Config {
	return crash.Config{Dir: dir, MaxBytes: 1 << 20, Name: "victim-1", Header: []byte("version 1.2.3\nmember victim.abc\n")}
}

// private is a folder that the recorder accepts.
func private(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o700)) //nolint:gosec // no wider than a folder needs
	return dir
}

func bystander(stop <-chan struct{}) { <-stop }

// victim is a process that keeps a dump and ends in one of many ways.
func victim() {
	cfg := configOf(os.Getenv(where))
	log := slog.New(slog.NewJSONHandler(os.Stdout, nil))
	if os.Getenv(how) == "full from the start" {
		fill()
	}
	err := crash.Record(context.Background(), cfg, log, func(r *crash.Recorder) error {
		taken := make(chan struct{}, 16)
		var stuck sync.Mutex
		r.Watch(func(w io.Writer) {
			stuck.Lock()
			defer stuck.Unlock()
			fmt.Fprintln(w, `{"worker":0,"entries":"1700000000000-7"}`)
			taken <- struct{}{}
		})
		go bystander(make(chan struct{}))
		await := func() { // where nothing can be written nothing is taken
			select {
			case <-taken:
			case <-time.After(1500 * time.Millisecond):
			}
		}
		await()
		switch os.Getenv(how) {
		case "full in the middle":
			await() // until both files have been in use
			fill()
			await()
			go func() {
				defer func() { v := recover(); r.Panicked(v); panic(v) }()
				panic("hooked")
			}()
		case "stray goroutine", "full from the start":
			await() // a second one: the first is written, and both files have been in use
			go func() { panic("stray") }()
		case "stack overflow":
			await() // as above: a snapshot is taken before it is written
			debug.SetMaxStack(1 << 20)
			go func() { os.Exit(deep(0)) }()
		case "hooked":
			go func() {
				defer func() { v := recover(); r.Panicked(v); panic(v) }()
				panic("hooked")
			}()
		case "hooked, holding the lock":
			go func() {
				defer func() { v := recover(); r.Panicked(v); panic(v) }()
				stuck.Lock()
				panic("hooked")
			}()
		case "clean":
			return nil
		case "error":
			return errors.New("work failed")
		}
		select {}
	})
	if err != nil {
		os.Exit(1)
	}
}

// fill makes every write to a file fail from now on, as a full disk does.
func fill() {
	signal.Ignore(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{}); err != nil {
		panic(err)
	}
}

// deep uses the stack up, in a way that looks finite.
func deep(n int) int {
	if n < 0 {
		return 0
	}
	return deep(n+1) + 1
}

// crashes runs a victim and returns its exit code and what it logged.
func crashes(t *testing.T, way, dir string) (code int, log, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), how+"="+way, where+"="+dir)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
	}
	return cmd.ProcessState.ExitCode(), string(out), errs.String()
}

func files(t *testing.T, dir, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	require.NoError(t, err)
	return found
}

// Promise 1.
func TestAnyCrashLeavesOneDumpWithSnapshotAndStacks(t *testing.T) {
	trace := map[string]string{"stray goroutine": "panic: stray", "stack overflow": "crash_test.deep(", "hooked": "panic: hooked"}
	for way, reason := range map[string]string{
		"stray goroutine": "panic: stray",
		"stack overflow":  "goroutine stack exceeds",
		"hooked":          "panic: hooked",
	} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "not made yet")
			code, log, stderr := crashes(t, way, dir)
			require.Equal(t, 2, code)
			require.Contains(t, stderr, reason)
			if way == "hooked" {
				require.Contains(t, log, `"msg":"fatal panic","component":"crash","reason":"hooked"`)
				require.Len(t, files(t, dir, "panic-*-victim-1.txt"), 1, "it has its name at once")
			}

			code, log, _ = crashes(t, "clean", dir)
			require.Zero(t, code)
			if way != "hooked" {
				require.Contains(t, log, "earlier process crashed; dump kept")
			}
			dumps := files(t, dir, "*")
			require.Len(t, dumps, 1, "one dump and nothing else")
			text, err := os.ReadFile(dumps[0])
			require.NoError(t, err)
			for _, part := range []string{
				"version 1.2.3\nmember victim.abc\n", "--- in flight at 20", `"entries":"1700000000000-7"`,
				"\n--- crash\n", trace[way], "crash_test.bystander", // all goroutines, not only the rejected one
			} {
				require.Contains(t, string(text), part)
			}
		})
	}
}

// Promise 2. Nothing of this depends on permissions, which root does not have.
func TestADiskThatTakesNothingDoesNotStopTheExit(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the limit of a dump that cannot be written: in make test")
	}
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for way, dir := range map[string]string{"stray goroutine": filepath.Join(file, "dumps"), "full from the start": private(t)} {
		began := time.Now()
		code, log, stderr := crashes(t, way, dir)
		require.Equal(t, 2, code, way)
		require.Contains(t, stderr, "panic: stray", way)
		require.Equal(t, 1, strings.Count(log, "panic dumps unavailable"), "%s: said once\n%s", way, log)
		require.Less(t, time.Since(began), 20*time.Second, way)
	}
}

func TestADiskThatFillsUpLeavesTheLastSnapshotThere(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the limit of a dump that cannot be written: in make test")
	}
	t.Parallel()
	dir := private(t)
	code, log, stderr := crashes(t, "full in the middle", dir)
	require.Equal(t, 2, code)
	require.Contains(t, stderr, "panic: hooked")
	require.Contains(t, log, "panic dumps unavailable")
	dumps := files(t, dir, "panic-*")
	require.Len(t, dumps, 1)
	text, err := os.ReadFile(dumps[0])
	require.NoError(t, err)
	require.Contains(t, string(text), `"entries":"1700000000000-7"`)
}

func TestAPanicThatHoldsTheSnapshotsLockStillEndsTheProcess(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the limit of a dump that cannot be written: in make test")
	}
	t.Parallel()
	dir := private(t)
	code, log, stderr := crashes(t, "hooked, holding the lock", dir)
	require.Equal(t, 2, code)
	require.Contains(t, stderr, "panic: hooked")
	require.Contains(t, log, "fatal panic")
	crashes(t, "clean", dir)
	dumps := files(t, dir, "panic-*")
	require.Len(t, dumps, 1)
	text, err := os.ReadFile(dumps[0])
	require.NoError(t, err)
	require.Contains(t, string(text), "panic: hooked")
	require.Contains(t, string(text), `"entries":"1700000000000-7"`, "of the snapshot before")
}

// Promise 3.
func TestDumpsAreCutAndOnlyTheNewestAreKept(t *testing.T) {
	t.Parallel()
	dir := private(t)
	for i := range 15 {
		name := fmt.Sprintf("panic-20260101T0000%02d.000Z-old-1.txt", i)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), make([]byte, 2<<20), 0o600))
	}
	cfg := configOf(dir)
	err := crash.Record(t.Context(), cfg, slog.New(slog.DiscardHandler), func(r *crash.Recorder) error {
		r.Watch(func(w io.Writer) {
			for range 20 {
				n, err := w.Write(make([]byte, 1<<20))
				if n != 1<<20 || err != nil {
					panic("a snapshot need not know of the bound")
				}
			}
		})
		r.Panicked("only said so")
		live := files(t, dir, "panic-*-victim-1.txt")
		require.Len(t, live, 1)
		info, err := os.Stat(live[0])
		require.NoError(t, err)
		require.InDelta(t, cfg.MaxBytes/2, info.Size(), 1024)
		return nil
	})
	require.NoError(t, err)
	dumps := files(t, dir, "panic-*-old-1.txt")
	require.Len(t, dumps, 10)
	require.Contains(t, dumps[0], "T000005", "the oldest went first")
	for _, d := range dumps {
		info, err := os.Stat(d)
		require.NoError(t, err)
		require.LessOrEqual(t, info.Size(), cfg.MaxBytes)
	}
}

// Promise 4.
func TestFilesOfTheLivingAreLeftAloneAndThoseOfTheKilledGo(t *testing.T) {
	t.Parallel()
	dir := private(t)
	const crashed = "header\n--- crash\npanic: x\n"
	living, err := os.Create(filepath.Join(dir, "running-living-1.0"))
	require.NoError(t, err)
	defer living.Close()
	_, err = living.WriteString(crashed)
	require.NoError(t, err)
	require.NoError(t, syscall.Flock(int(living.Fd()), syscall.LOCK_EX))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "running-killed-1.0"), []byte("header\n--- crash\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "running-dead-1.1"), []byte(crashed), 0o600))

	code, log, _ := crashes(t, "error", dir)
	require.Equal(t, 1, code, "the error of the work comes through")
	require.Contains(t, log, `"reason":"panic: x"`)
	left := files(t, dir, "*")
	require.Len(t, left, 2, "%v", left)
	require.Regexp(t, `panic-.*-dead-1\.txt$`, left[0])
	require.Regexp(t, `running-living-1\.0$`, left[1])
}

// record keeps a dump in dir for a moment, and returns the log.
func record(t *testing.T, dir string) string {
	t.Helper()
	var log strings.Builder
	ended := make(chan error, 1)
	go func() {
		ended <- crash.Record(t.Context(), configOf(dir), slog.New(slog.NewJSONHandler(&log, nil)), func(*crash.Recorder) error { return nil })
	}()
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		require.FailNow(t, "the start hangs")
	}
	return log.String()
}

// Promise 5.
func TestWhatLiesInTheFolderIsNotTrusted(t *testing.T) {
	const theirs = "another program's work\n--- crash\npanic: x\n"
	for _, name := range []string{"running-victim-1.0", "running-old-1.0", "panic-20260101T000000.000Z-old-1.txt"} {
		for kind, plant := range map[string]func(target, path string) error{"symlink": os.Symlink, "hard link": os.Link} {
			t.Run(kind+" "+name, func(t *testing.T) {
				dir, target := private(t), filepath.Join(t.TempDir(), "work")
				content := theirs + strings.Repeat("x", 2<<20) // more than a dump may have
				require.NoError(t, os.WriteFile(target, []byte(content), 0o600))
				require.NoError(t, plant(target, filepath.Join(dir, name)))
				record(t, dir)
				left, err := os.ReadFile(target)
				require.NoError(t, err)
				require.Len(t, left, len(content))
				require.Equal(t, content, string(left))
			})
		}
		t.Run("pipe "+name, func(t *testing.T) {
			dir := private(t)
			require.NoError(t, syscall.Mkfifo(filepath.Join(dir, name), 0o600))
			log := record(t, dir)
			if name == "running-victim-1.0" {
				require.Contains(t, log, "no regular file of this user alone; remove it")
			}
		})
	}
}

func TestAFolderThatOthersCanWriteIsRefused(t *testing.T) {
	own := func(mode os.FileMode) string {
		dir := filepath.Join(t.TempDir(), "dumps")
		require.NoError(t, os.Mkdir(dir, 0o700))
		require.NoError(t, os.Chmod(dir, mode))
		return dir
	}
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(own(0o700), link))
	folders := map[string]string{
		own(0o777 | os.ModeSticky): "mode 0777", own(0o755): "mode 0755", own(0o770): "chmod 700", link: "is a symbolic link",
	}
	if os.Geteuid() == 0 {
		others := own(0o700)
		require.NoError(t, os.Chown(others, 12345, 12345))
		folders[others] = "belongs to another user"
	}
	for dir, reason := range folders {
		require.Contains(t, record(t, dir), reason)
		require.Empty(t, files(t, dir, "*"), reason)
	}
	missing := filepath.Join(t.TempDir(), "a", "b")
	require.Empty(t, record(t, missing))
	info, err := os.Stat(missing)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
}
