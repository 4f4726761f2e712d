package devenv_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	osexec "os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
)

// victimVariable makes this test binary start servers and wait for its death.
const victimVariable = "DEVENV_TEST_VICTIM"

type victimReport struct {
	Dir       string
	Addresses []string
	PIDs      []int
}

func victim() {
	env, err := devenv.Start(context.Background(), devenv.Options{Redis: true, Postgres: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	if os.Getenv(victimVariable) == "paused" {
		if err := env.Postgres.Pause(); err != nil {
			fmt.Println(err)
			return
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(victimReport{
		Dir:       env.Dir(),
		Addresses: []string{env.Redis.Addr(), env.Postgres.Addr()},
		PIDs:      []int{env.Redis.PID(), env.Postgres.PID()},
	}); err != nil {
		fmt.Println(err)
		return
	}
	select {}
}

// Promise 3, by a process that really is killed.
func TestServersAndFolderGoWhenTheirOwnerDies(t *testing.T) {
	t.Parallel()
	start(t, devenv.Options{}) // skips where it has to
	for _, tt := range []struct {
		name   string
		state  string
		signal syscall.Signal
	}{
		{"SIGKILL", "running", syscall.SIGKILL},
		{"SIGINT", "running", syscall.SIGINT},
		{"SIGKILL with paused Postgres", "paused", syscall.SIGKILL},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cmd := osexec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), victimVariable+"="+tt.state)
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			line, err := bufio.NewReader(out).ReadBytes('\n')
			require.NoError(t, err)
			var report victimReport
			require.NoError(t, json.Unmarshal(line, &report), string(line))
			for _, addr := range report.Addresses {
				conn, err := net.Dial("tcp", addr)
				require.NoError(t, err)
				require.NoError(t, conn.Close())
			}

			require.NoError(t, cmd.Process.Signal(tt.signal))
			require.Error(t, cmd.Wait())
			require.Eventually(t, func() bool {
				for _, addr := range report.Addresses {
					if conn, err := net.Dial("tcp", addr); err == nil {
						_ = conn.Close()
						return false
					}
				}
				_, err := os.Stat(report.Dir)
				return os.IsNotExist(err)
			}, 15*time.Second, 50*time.Millisecond, "%+v", report)
		})
	}
}
