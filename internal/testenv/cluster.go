package testenv

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/devenv"
)

// RedisCluster starts a Redis Cluster of a test's own.
func RedisCluster(tb testing.TB) *devenv.Cluster {
	tb.Helper()
	return OwnServers(tb, devenv.Options{Cluster: true}).Cluster
}

// ask sends a command to a node and returns its answer as text.
func ask(tb testing.TB, node *devenv.Server, args ...any) string {
	tb.Helper()
	client := redis.NewClient(&redis.Options{Addr: node.Addr()})
	defer func() { _ = client.Close() }()
	answer, err := client.Do(tb.Context(), args...).Result()
	if err != nil {
		tb.Fatal(args, err)
	}
	return fmt.Sprint(answer)
}

// InStep waits until a replica of a server has all that was written to it.
func InStep(tb testing.TB, master *devenv.Server) {
	tb.Helper()
	Wait(tb, 30*time.Second, func() error {
		info := ask(tb, master, "info", "replication")
		_, rest, _ := strings.Cut(info, "master_repl_offset:")
		offset, _, _ := strings.Cut(rest, "\r\n")
		if !strings.Contains(info, "state=online,offset="+offset+",") {
			return fmt.Errorf("no replica is in step: %s", info)
		}
		return nil
	})
}

// Sentinel starts a Redis Sentinel that watches a server under the name
// mymaster, and by itself replaces one that does not answer for half a second.
// It returns its address.
func Sentinel(tb testing.TB, port int) string {
	tb.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		tb.Skip("needs redis-server on the PATH to run a Sentinel")
	}
	own, err := devenv.FreePort()
	if err != nil {
		tb.Fatal(err)
	}
	conf := filepath.Join(tb.TempDir(), "sentinel.conf")
	text := fmt.Sprintf(`bind 127.0.0.1
port %d
sentinel monitor mymaster 127.0.0.1 %d 1
sentinel down-after-milliseconds mymaster 500
sentinel failover-timeout mymaster 3000
`, own, port)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	cmd := exec.CommandContext(tb.Context(), program, conf, "--sentinel")
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(own))
	Wait(tb, 30*time.Second, func() error {
		conn, err := (&net.Dialer{}).DialContext(tb.Context(), "tcp", addr)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	return addr
}
