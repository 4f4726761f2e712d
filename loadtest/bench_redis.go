package loadtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"
)

// raw is a connection to Redis without a client library: what it costs to parse
// what is read belongs to the service and not to the ceiling.
type raw struct {
	conn net.Conn
	in   *bufio.Reader
}

func (b *bench) dialRedis(ctx context.Context) (*raw, error) {
	u, err := url.Parse(b.env.Redis.URL())
	if err != nil {
		return nil, fmt.Errorf("read the URL of Redis: %w", err)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, fmt.Errorf("dial Redis: %w", err)
	}
	return &raw{conn: conn, in: bufio.NewReaderSize(conn, 1<<20)}, nil
}

// do sends a command and returns the IDs in the reply: the first strings of the
// arrays at the depth at which XREADGROUP has its entries.
func (r *raw) do(args ...string) ([]string, error) {
	if err := r.conn.SetDeadline(time.Now().Add(serverTimeout)); err != nil {
		return nil, err
	}
	out := fmt.Appendf(nil, "*%d\r\n", len(args))
	for _, a := range args {
		out = fmt.Appendf(out, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := r.conn.Write(out); err != nil {
		return nil, fmt.Errorf("write to Redis: %w", err)
	}
	var ids []string
	return ids, r.reply(0, false, &ids)
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

func (b *bench) emptyRedis(ctx context.Context) (err error) {
	r, err := b.dialRedis(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.conn.Close()) }()
	_, err = r.do("flushall")
	return err
}

// redisCeiling reads the entries through a plain group and acknowledges them,
// one read after the other: what a worker without any coordination could get.
func (b *bench) redisCeiling(ctx context.Context) error {
	for n := range b.cfg.Rounds {
		rate, err := b.readAndAck(ctx)
		if err != nil {
			return fmt.Errorf("read and acknowledge: %w", err)
		}
		b.note("round %d: group read and ack: %.0f entries/s", n+1, rate)
		b.res.ReadAck.add(rate)
	}
	return nil
}

func (b *bench) readAndAck(ctx context.Context) (rate float64, err error) {
	_, err = b.on(ctx, dbTemplate, func(g *ground) (worked, error) {
		for rest := b.inOrder; len(rest) > 0; {
			n := min(benchPipe, len(rest))
			if _, err := g.publisher.Publish(ctx, rest[:n]); err != nil {
				return worked{}, fmt.Errorf("append entries: %w", err)
			}
			rest = rest[n:]
		}
		rate, err = b.readAll(ctx, g)
		return worked{}, err
	})
	return rate, err
}

func (b *bench) readAll(ctx context.Context, g *ground) (rate float64, err error) {
	r, err := b.dialRedis(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.conn.Close()) }()
	if _, err := r.do("xgroup", "create", g.stream, g.group, "0"); err != nil {
		return 0, err
	}
	began, done := time.Now(), 0
	for done < len(b.inOrder) {
		ids, err := r.do("xreadgroup", "group", g.group, "one", "count", strconv.Itoa(benchBatch), "streams", g.stream, ">")
		if err != nil {
			return 0, err
		}
		if len(ids) == 0 {
			return 0, fmt.Errorf("%d of %d entries were read and no more are there", done, len(b.inOrder))
		}
		if _, err := r.do(append([]string{"xack", g.stream, g.group}, ids...)...); err != nil {
			return 0, err
		}
		done += len(ids)
	}
	return float64(done) / time.Since(began).Seconds(), nil
}
