package bench

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// raw is a connection to Redis without a client library: what it costs to parse
// what is read belongs to the service and not to the ceiling.
type raw struct {
	conn net.Conn
	in   *bufio.Reader
}

func (b *run) dialRedis(ctx context.Context, node *devenv.Server) (*raw, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", node.Addr())
	if err != nil {
		return nil, fmt.Errorf("dial Redis: %w", err)
	}
	return &raw{conn: conn, in: bufio.NewReaderSize(conn, 1<<20)}, nil
}

// do sends a command and returns the IDs in the reply: the first strings of the
// arrays at the depth at which XREADGROUP has its entries.
func (r *raw) do(args ...string) ([]string, error) {
	if err := r.send(args...); err != nil {
		return nil, err
	}
	var ids []string
	return ids, r.reply(0, false, &ids)
}

func (r *raw) send(args ...string) error {
	if err := r.conn.SetDeadline(time.Now().Add(testbed.ServerTimeout)); err != nil {
		return err
	}
	out := fmt.Appendf(nil, "*%d\r\n", len(args))
	for _, a := range args {
		out = fmt.Appendf(out, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := r.conn.Write(out); err != nil {
		return fmt.Errorf("write to Redis: %w", err)
	}
	return nil
}

// persistence returns what the server says about its files.
func (r *raw) persistence() (string, error) { return r.info("persistence") }

func (r *raw) info(section string) (string, error) {
	if err := r.send("info", section); err != nil {
		return "", err
	}
	var n int
	if _, err := fmt.Fscanf(r.in, "$%d\r\n", &n); err != nil {
		return "", fmt.Errorf("read from Redis: %w", err)
	}
	text := make([]byte, n+2)
	if _, err := io.ReadFull(r.in, text); err != nil {
		return "", fmt.Errorf("read from Redis: %w", err)
	}
	return string(text), nil
}

// commandStat is what a command has cost a server.
type commandStat struct{ calls, usec int64 }

// commandStats returns what each command has cost all nodes so far.
func (b *run) commandStats(ctx context.Context) (map[string]commandStat, error) {
	all := make(map[string]commandStat)
	err := b.eachNode(ctx, func(r *raw) error {
		text, err := r.info("commandstats")
		if err != nil {
			return err
		}
		for line := range strings.Lines(text) {
			name, rest, _ := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":")
			var s commandStat
			if _, err := fmt.Sscanf(rest, "calls=%d,usec=%d", &s.calls, &s.usec); err != nil {
				continue // the heading
			}
			sum := all[name]
			all[name] = commandStat{sum.calls + s.calls, sum.usec + s.usec}
		}
		return nil
	})
	return all, err
}

// saveCommandStats writes what each command cost between two moments, a record.
func (b *run) saveCommandStats(name string, from, to spent) error {
	records := float64(from.outstanding - to.outstanding)
	names := slices.SortedFunc(maps.Keys(to.commands), func(a, b string) int {
		return cmp.Compare(to.commands[b].usec-from.commands[b].usec, to.commands[a].usec-from.commands[a].usec)
	})
	text := "command\tcalls for 1,000 records\tus a record\n"
	for _, n := range names {
		if calls := to.commands[n].calls - from.commands[n].calls; calls > 0 {
			text += fmt.Sprintf("%s\t%.2f\t%.3f\n", n, 1000*float64(calls)/records, float64(to.commands[n].usec-from.commands[n].usec)/records)
		}
	}
	if err := os.WriteFile(filepath.Join(b.cfg.Profile, name+".redis.txt"), []byte(text), 0o644); err != nil {
		return fmt.Errorf("keep the costs of the commands of Redis: %w", err)
	}
	return nil
}

const entryDepth = 4 // streams, stream, entries, entry

func (r *raw) reply(depth int, first bool, ids *[]string) error {
	line, err := r.in.ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("read from Redis: %w", err)
	}
	if len(line) < 3 {
		return errors.New("read from Redis: a line is too short")
	}
	kind, text := line[0], string(line[1:len(line)-2])
	if kind == '-' {
		return fmt.Errorf("redis answers: %s", text)
	}
	if kind != '*' && kind != '$' {
		return nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("read from Redis: %w", err)
	}
	switch {
	case n < 0:
		return nil
	case kind == '*':
		for i := range n {
			if err := r.reply(depth+1, i == 0, ids); err != nil {
				return err
			}
		}
		return nil
	case depth == entryDepth && first:
		id := make([]byte, n)
		for i := range id {
			if id[i], err = r.in.ReadByte(); err != nil {
				return fmt.Errorf("read from Redis: %w", err)
			}
		}
		*ids = append(*ids, string(id))
		n = 0
	}
	_, err = r.in.Discard(n + 2)
	return err
}

// redisURL returns the URL of the server, or of the Cluster.
func (b *run) redisURL() string {
	if b.cfg.Cluster {
		return b.env.Cluster.URL()
	}
	return b.env.Redis.URL()
}

// nodes returns the server, or the masters of the Cluster.
func (b *run) nodes() []*devenv.Server {
	if b.cfg.Cluster {
		return b.env.Cluster.Nodes()[:masters]
	}
	return []*devenv.Server{b.env.Redis}
}

// eachNode calls do with a connection to each node.
func (b *run) eachNode(ctx context.Context, do func(r *raw) error) error {
	for _, node := range b.nodes() {
		r, err := b.dialRedis(ctx, node)
		if err != nil {
			return err
		}
		if err := errors.Join(do(r), r.conn.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (b *run) emptyRedis(ctx context.Context) error {
	return b.eachNode(ctx, func(r *raw) error {
		_, err := r.do("flushall")
		return err
	})
}

// fill appends entries, each to the stream of its device, and has the servers rewrite
// their append-only files, so that none of that work is left over for what is measured.
func (b *run) fill(ctx context.Context, g *testbed.Servers, entries [][]string) error {
	streams := g.All()
	of := make([][][]string, len(streams))
	for _, e := range entries {
		n := telemetry.StreamOf((&telemetry.Entry{Fields: e}).DeviceID(), len(streams))
		of[n] = append(of[n], e)
	}
	for i, s := range streams {
		if err := b.append(ctx, s, of[i]); err != nil {
			return err
		}
	}
	return b.eachNode(ctx, func(r *raw) error { return rewritten(ctx, r) })
}

func (b *run) append(ctx context.Context, g *testbed.Servers, entries [][]string) error {
	for rest := entries; len(rest) > 0; {
		n := min(benchPipe, len(rest))
		if _, err := g.Publisher.Publish(ctx, rest[:n]); err != nil {
			return fmt.Errorf("append the entries: %w", err)
		}
		rest = rest[n:]
	}
	return nil
}

// rewritten waits until the server has rewritten its append-only file.
func rewritten(ctx context.Context, r *raw) error {
	asked := false
	return testbed.Within(ctx, testbed.JudgeTimeout, pollInterval, func() error {
		text, err := r.persistence()
		switch {
		case err != nil:
			return testbed.GiveUp(err)
		case strings.Contains(text, "aof_rewrite_in_progress:1"), strings.Contains(text, "aof_rewrite_scheduled:1"):
			return errors.New("the append-only file is being rewritten")
		case asked:
			return nil
		}
		if _, err := r.do("bgrewriteaof"); err != nil {
			return testbed.GiveUp(err)
		}
		asked = true
		return errors.New("the append-only file is to be rewritten")
	})
}

// redisCeiling reads the entries through a plain group and acknowledges them,
// one read after the other: what a worker without any coordination could get.
func (b *run) redisCeiling(ctx context.Context) error {
	for n := range b.cfg.Rounds {
		rate, err := b.readAndAck(ctx)
		if err != nil {
			return fmt.Errorf("read and acknowledge: %w", err)
		}
		b.note("round %d: group read and ack: %s entries/s", n+1, cli.Thousands(int64(rate)))
		b.res.ReadAck.add(rate)
	}
	return nil
}

func (b *run) readAndAck(ctx context.Context) (rate float64, err error) {
	_, err = b.on(ctx, dbTemplate, func(g *testbed.Servers) (drainResult, error) {
		if err := b.fill(ctx, g, b.inOrder); err != nil {
			return drainResult{}, err
		}
		rate, err = b.readAll(ctx, g)
		return drainResult{}, err
	})
	return rate, err
}

func (b *run) readAll(ctx context.Context, g *testbed.Servers) (rate float64, err error) {
	r, err := b.dialRedis(ctx, b.env.Redis)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.conn.Close()) }()
	if _, err := r.do("xgroup", "create", g.Stream, g.Group, "0"); err != nil {
		return 0, err
	}
	began, done := time.Now(), 0
	for done < len(b.inOrder) {
		ids, err := r.do("xreadgroup", "group", g.Group, "one", "count", strconv.Itoa(benchBatch), "streams", g.Stream, ">")
		if err != nil {
			return 0, err
		}
		if len(ids) == 0 {
			return 0, fmt.Errorf("%d of %d entries were read and no more are there", done, len(b.inOrder))
		}
		if _, err := r.do(append([]string{"xack", g.Stream, g.Group}, ids...)...); err != nil {
			return 0, err
		}
		done += len(ids)
	}
	return float64(done) / time.Since(began).Seconds(), nil
}
