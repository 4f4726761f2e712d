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

// slots is the number of hash slots of a Redis Cluster.
const slots = 16384

// RedisCluster is a Redis Cluster of a test's own.
type RedisCluster struct {
	URL     string // names the masters it began with
	masters []*devenv.Server
	tb      testing.TB
}

// NewRedisCluster starts a Redis Cluster of n masters that share the slots
// evenly, in order.
func NewRedisCluster(tb testing.TB, n int) *RedisCluster {
	tb.Helper()
	c := &RedisCluster{tb: tb}
	var addrs []string
	for i := range n {
		node := c.node()
		ask(tb, node, "cluster", "addslotsrange", i*slots/n, (i+1)*slots/n-1)
		c.masters, addrs = append(c.masters, node), append(addrs, node.Addr())
	}
	c.settled(n)
	c.URL = "redis://" + addrs[0] + "?addr=" + strings.Join(addrs[1:], "&addr=")
	return c
}

// Master returns the node that began with the slot of a key.
func (c *RedisCluster) Master(key string) *devenv.Server {
	c.tb.Helper()
	slot, err := strconv.Atoi(ask(c.tb, c.masters[0], "cluster", "keyslot", key))
	if err != nil {
		c.tb.Fatal(err)
	}
	return c.masters[slot*len(c.masters)/slots]
}

// Replicate starts a replica of a master, and returns when it is in step.
func (c *RedisCluster) Replicate(master *devenv.Server) {
	c.tb.Helper()
	node := c.node()
	c.settled(len(c.masters)+1, node)
	ask(c.tb, node, "cluster", "replicate", ask(c.tb, master, "cluster", "myid"))
	InStep(c.tb, master)
}

// node starts an empty node, which meets the others.
func (c *RedisCluster) node() *devenv.Server {
	c.tb.Helper()
	bus, err := devenv.FreePort()
	if err != nil {
		c.tb.Fatal(err)
	}
	node := OwnServers(c.tb, devenv.Options{Redis: true, RedisArgs: []string{
		"--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(bus), "--cluster-node-timeout", "1500",
	}}).Redis
	if len(c.masters) > 0 {
		ask(c.tb, c.masters[0], "cluster", "meet", "127.0.0.1", node.Port(), bus)
	}
	return node
}

// settled waits until the masters, and others, agree that there are n nodes.
func (c *RedisCluster) settled(n int, others ...*devenv.Server) {
	c.tb.Helper()
	Wait(c.tb, 30*time.Second, func() error {
		for _, node := range append(others, c.masters...) {
			info := ask(c.tb, node, "cluster", "info")
			if !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d\r\n", n)) {
				return fmt.Errorf("the cluster is not up: %s", info)
			}
		}
		return nil
	})
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
