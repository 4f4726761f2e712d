package devenv

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"

	"github.com/redis/go-redis/v9"
)

type redisKind struct {
	server string
	args   []string
	node   int // of a Cluster, from 1; 0 for a server of its own
}

func findRedis(args []string) (redisKind, error) {
	path, err := findRedisServer()
	return redisKind{server: path, args: args}, err
}

func (k redisKind) name() string {
	if k.node > 0 {
		return fmt.Sprintf("redis-%d", k.node)
	}
	return "redis"
}

// busPort returns the port on which nodes of a Cluster talk to each other.
func busPort(port int) int { return port + 1 }

func (redisKind) url(addr string) string { return "redis://" + addr + "/0" }

func (redisKind) prepare(context.Context, string, *account) error { return nil }

func (k redisKind) command(data string, port int) []string {
	args := []string{
		k.server,
		"--bind", "127.0.0.1",
		"--port", strconv.Itoa(port),
		"--protected-mode", "no", // bound to loopback, where it guards nothing
		"--dir", data,
		"--daemonize", "no",
		"--appendonly", "yes",
		"--appendfsync", "everysec",
		"--save", "",
		"--maxmemory-policy", "noeviction",
	}
	if k.node > 0 {
		args = append(args,
			"--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(busPort(port)), "--cluster-node-timeout", "1500",
			"--cluster-allow-replica-migration", "no",
			"--cluster-require-full-coverage", "no", // or all nodes refuse everything while one is away
			"--repl-diskless-sync-delay", "0", // it waits for further replicas otherwise
		)
	}
	return append(args, k.args...)
}

func (redisKind) answers(ctx context.Context, url string, pid int, _ string) error {
	opts, err := RedisOptions("the server's own URL", url)
	if err != nil {
		return err
	}
	// A plain dial first: the client would log every refusal, and retry.
	probe, err := new(net.Dialer).DialContext(ctx, "tcp", opts.Addr)
	if err != nil {
		return fmt.Errorf("dial Redis: %w", err)
	}
	if err := probe.Close(); err != nil {
		return fmt.Errorf("close probe: %w", err)
	}
	opts.MaxRetries, opts.DialerRetries, opts.ContextTimeoutEnabled = -1, 1, true
	client := redis.NewClient(opts)
	defer func() { _ = client.Close() }()
	// INFO answers while the append-only file is loaded, PING does not.
	if err := client.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("ping Redis: %w", err)
	}
	info, err := client.Info(ctx, "server").Result()
	if err != nil {
		return fmt.Errorf("ask Redis who it is: %w", err)
	}
	if !strings.Contains(info, fmt.Sprintf("process_id:%d\r\n", pid)) {
		return fmt.Errorf("another Redis answers at %s", opts.Addr)
	}
	return nil
}

func (redisKind) stopSignal() syscall.Signal { return syscall.SIGTERM }

func (redisKind) lastSignal() string { return "KILL" }

func (redisKind) discard(string) error { return nil }
