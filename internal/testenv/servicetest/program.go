package servicetest

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/trmtracking/processor/internal/testenv"
)

// asProcessor in the environment makes the test's own program the one under test.
const asProcessor = "PROCESSOR_TEST_MAIN"

// program is the processor that Spawn starts.
var program = sync.OnceValues(build)

// Main runs the tests of a package. self is the main function of a program and
// returns its exit code: the tests of a command are themselves the program that
// Spawn starts. With nil the processor is built when the first test needs it.
func Main(m *testing.M, self func() int) {
	if self != nil {
		if os.Getenv(asProcessor) != "" {
			os.Exit(self())
		}
		program = sync.OnceValues(os.Executable)
	}
	flag.Parse()
	// Most of the time these tests wait for a process to come up, or to notice.
	if flag.Lookup("test.parallel").Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		_ = flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))) // the flag exists, and takes numbers
	}
	testenv.Main(m)
}

// Program returns the path of the processor. A command that is to be the processor
// needs Environ as well.
func Program(tb testing.TB) string {
	tb.Helper()
	path, err := program()
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

// Environ returns what every process needs in its environment, whatever it is told.
func Environ() []string {
	// A program with the race detector that ends well would wait a second for races in
	// goroutines that are left, and tests run hundreds of them.
	return []string{asProcessor + "=1", "PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir(), "GORACE=atexit_sleep_ms=0"}
}

const command = "github.com/trmtracking/processor/cmd/processor"

// build builds the processor into bin/test, where the next build finds it if
// nothing has changed.
func build() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	list := exec.CommandContext(ctx, "go", "list", "-deps", "-f", `{{if not .Standard}}{{.Dir}}{{end}}`, command)
	out, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("list the packages of the processor: %w", err)
	}
	folders := strings.Fields(string(out))
	main := folders[len(folders)-1]
	root := filepath.Dir(filepath.Dir(main))
	for _, folder := range folders {
		// The go command repeats a test whose result it knows when a folder that
		// the test has read is another: so a change of the service is noticed.
		if strings.HasPrefix(folder, root) {
			if _, err := os.ReadDir(folder); err != nil {
				return "", err
			}
		}
	}
	// Who changes the source without writing it, by GOFLAGS, keeps the result apart.
	folder := cmp.Or(os.Getenv("PROCESSOR_TEST_FOLDER"), filepath.Join(root, "bin", "test"))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(folder, "processor")
	args := []string{"build", "-o", path}
	if raceEnabled {
		path += "-race"
		args = []string{"build", "-race", "-o", path}
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o644) // other packages build it too
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if out, err := exec.CommandContext(ctx, "go", append(args, command)...).CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("build the processor: %w", err), errors.New(string(out)))
	}
	return path, nil
}
