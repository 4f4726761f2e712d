package e2e_test

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// TestALogReaderThatStallsOrEndsStopsNothing: its standard output is a full pipe
// that takes nothing, or one whose reader is gone. The service stores what comes
// and drains on SIGTERM.
func TestALogReaderThatStallsOrEndsStopsNothing(t *testing.T) {
	for _, c := range []struct {
		name string
		ends bool
	}{{"stalls", false}, {"ends", true}} {
		t.Run(c.name, func(t *testing.T) {
			dep := servicetest.New(t)
			r, w, err := os.Pipe()
			require.NoError(t, err)
			defer r.Close()
			// Nothing more fits into the pipe. Fd makes it blocking, so it is asked once.
			fd := int(w.Fd())
			require.NoError(t, syscall.SetNonblock(fd, true))
			for err == nil {
				_, err = syscall.Write(fd, make([]byte, 4096))
			}
			require.ErrorIs(t, err, syscall.EAGAIN)
			require.NoError(t, syscall.SetNonblock(fd, false))
			cmd := exec.Command(servicetest.Program(t), "run")
			cmd.Env = append(servicetest.Environ(), dep.Environ("LOG_LEVEL=debug")...)
			cmd.Stdout, cmd.Stderr = w, w
			require.NoError(t, cmd.Start())
			require.NoError(t, w.Close())
			done := make(chan error, 1)
			go func() { done <- cmd.Wait() }()
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			if c.ends {
				require.NoError(t, r.Close())
			}
			dep.Publish(servicetest.Records(0, 100)...)
			dep.AwaitStored(100, 30*time.Second)
			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
			select {
			case err := <-done:
				require.NoError(t, err, "exit code 0")
			case <-time.After(20 * time.Second):
				require.FailNow(t, "it does not end")
			}
		})
	}
}
