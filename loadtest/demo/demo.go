package demo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/observer"
	"github.com/trmtracking/processor/loadtest/oracle"
)

const (
	serverTimeout = 10 * time.Second
	connections   = 2 // to Postgres, for the judge
)

// Config is a demo of a service that runs already. Every field is needed.
type Config struct {
	RedisURL    string
	PostgresURL string
	Stream      string
	Group       string
	Load        *Load
	Metrics     prometheus.Gatherer // of the service
	Show        func(Snapshot)
	Every       time.Duration // between two snapshots
	StallLimit  time.Duration // without progress after which waiting ends
}

// Result is how a demo ended.
type Result struct {
	Account  oracle.Account
	Findings []oracle.Finding // examples of what is wrong
	Invalid  int64            // entries sent that are no valid record
	Stuck    int64            // entries pending that are valid records
	P50, P99 time.Duration    // latency from stream time to commit
	Timed    bool             // whether there was any
}

// Good reports whether the account balances with nothing lost, wrong or
// unfinished, but for entries that are no valid record and stay pending.
func (r *Result) Good() bool {
	a := r.Account
	return a.Balanced() && a.Lost == 0 && a.Mismatches == 0 && r.Stuck == 0
}

// demo is one run.
type demo struct {
	cfg     Config
	log     *slog.Logger
	group   *stream.Group
	letters *stream.DeadLetters
	sender  *fleet.Sender
	file    string // the send log

	began    time.Time
	before   figures // at the last snapshot
	beforeAt time.Time
}

// Run feeds the load, waits until the service has done it all, and judges. A
// context that ends in the middle is an error: there is no account then.
func Run(ctx context.Context, cfg Config, log *slog.Logger) (*Result, error) {
	where := stream.Config{
		URL: cfg.RedisURL, Stream: cfg.Stream, Group: cfg.Group, Shards: 1, Timeout: serverTimeout, Name: "processor/demo",
	}
	client, err := stream.Connect(where)
	if err != nil {
		return nil, fmt.Errorf("connect the demo: %w", err)
	}
	defer client.Close() //nolint:errcheck // every command has had its reply
	group, err := stream.NewGroup(client, where)
	if err != nil {
		return nil, fmt.Errorf("connect the demo: %w", err)
	}
	folder, err := os.MkdirTemp("", "processor-demo-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the send log: %w", err)
	}
	defer os.RemoveAll(folder) //nolint:errcheck // what stays is in the folder for temporary files

	letters, err := stream.NewDeadLetters(client, where, group.Names().DeadLetters(false))
	if err != nil {
		return nil, fmt.Errorf("connect the demo: %w", err)
	}
	d := &demo{cfg: cfg, log: log, group: group, letters: letters, file: filepath.Join(folder, "sent")}
	file, err := os.Create(d.file)
	if err != nil {
		return nil, fmt.Errorf("make the send log: %w", err)
	}
	defer file.Close() //nolint:errcheck // the sender flushes it and reports
	sendLog, err := fleet.NewLogWriter(file)
	if err != nil {
		return nil, err
	}
	source, err := cfg.Load.source()
	if err != nil {
		return nil, err
	}
	d.sender, err = fleet.NewSender(fleet.DefaultSenderConfig(), source, fleet.AtSpeed(cfg.Load.Speed),
		fleet.NewPublisher(client, cfg.Stream, 0), sendLog, log)
	if err != nil {
		return nil, err
	}
	return d.run(ctx)
}

func (d *demo) run(ctx context.Context) (*Result, error) {
	d.began = time.Now()
	if err := d.feed(ctx); err != nil {
		return nil, err
	}
	if _, err := d.sender.Settle(ctx, d.group); err != nil {
		return nil, err
	}
	sent, err := fleet.OpenLog(d.file)
	if err != nil {
		return nil, err
	}
	defer sent.Close() //nolint:errcheck // only read from
	invalid := map[telemetry.EntryID]bool{}
	err = sent.Scan(func(_ int64, s *fleet.Sent) error {
		if s.Class != "" {
			invalid[s.ID] = true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	left, err := d.finish(ctx, invalid)
	if err != nil {
		return nil, err
	}
	d.show(ctx)
	return d.judge(ctx, sent, invalid, left)
}

// feed sends everything and shows how far it is.
func (d *demo) feed(ctx context.Context) error {
	sending, stop := context.WithCancel(ctx)
	defer stop()
	sent := make(chan error, 1)
	go func() { sent <- d.sender.Run(sending) }()
	ticker := time.NewTicker(d.cfg.Every)
	defer ticker.Stop()
	for {
		select {
		case err := <-sent:
			if err == nil {
				err = context.Cause(ctx)
			}
			if err != nil {
				return fmt.Errorf("feed the stream: %w", err)
			}
			return nil
		case <-ticker.C:
			d.show(ctx)
		}
	}
}

// show hands out a snapshot. What cannot be asked for at the moment is unknown.
func (d *demo) show(ctx context.Context) {
	now := time.Now()
	s := Snapshot{Elapsed: now.Sub(d.began), Entries: d.cfg.Load.Entries, Sent: d.sender.Progress().Sent}
	if info, err := d.group.Info(ctx); err == nil && info.Lag.Known {
		s.Backlog, s.Known = info.Lag.N+info.Pending, true
	}
	f, err := gather(d.cfg.Metrics)
	if err != nil {
		d.log.Warn("service metrics unavailable", "err", err)
		d.cfg.Show(s)
		return
	}
	s.Stored, s.Again = f.stored, f.again
	if seconds := now.Sub(d.beforeAt).Seconds(); !d.beforeAt.IsZero() && seconds > 0 {
		rate := float64(f.stored-d.before.stored) / seconds
		s.Rate = &rate
	}
	s.P99, s.Timed = f.latency.since(d.before.latency).quantile(.99)
	d.before, d.beforeAt = f, now
	d.cfg.Show(s)
}

// leftover is what was not finished when waiting ended.
type leftover struct {
	pending    map[telemetry.EntryID]bool
	dispatched telemetry.EntryID // what follows was not even dispatched
	at         time.Time
}

// finish waits until nothing is left but entries that are no valid record. An
// invalid one may be on its way to the dead letters, so those get a moment too.
func (d *demo) finish(ctx context.Context, invalid map[telemetry.EntryID]bool) (leftover, error) {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	shown, moved, least := time.Now(), time.Now(), int64(-1)
	for {
		info, err := d.group.Info(ctx)
		if err != nil {
			d.log.Warn("stream unavailable", "err", err)
		} else {
			outstanding := info.Lag.N + info.Pending
			if least < 0 || outstanding < least {
				least, moved = outstanding, time.Now()
			}
			out := time.Since(moved) > d.cfg.StallLimit
			if out || info.Lag.Known && info.Lag.N == 0 && info.Pending <= int64(len(invalid)) {
				left, err := d.leftover(ctx, info, outstanding)
				if err != nil {
					return left, err
				}
				if out || left.only(invalid) && (len(left.pending) == 0 || time.Since(moved) > quiet) {
					if !out && len(left.pending) > 0 {
						left.at = moved // the quiet was ours
					}
					return left, nil
				}
			}
		}
		if time.Since(shown) >= d.cfg.Every {
			shown = time.Now()
			d.show(ctx)
		}
		select {
		case <-ctx.Done():
			return leftover{}, context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// quiet is how long nothing may happen to invalid entries before they count as
// left over.
const quiet = 2 * time.Second

func (d *demo) leftover(ctx context.Context, info stream.Info, outstanding int64) (leftover, error) {
	left := leftover{pending: map[telemetry.EntryID]bool{}, dispatched: info.Accounted(), at: time.Now()}
	ids, err := d.group.Pending(ctx, int(outstanding)+1)
	if err != nil {
		return left, err
	}
	for _, id := range ids {
		left.pending[id] = true
	}
	return left, nil
}

// only reports whether nothing but the entries given is left.
func (l leftover) only(these map[telemetry.EntryID]bool) bool {
	for id := range l.pending {
		if !these[id] {
			return false
		}
	}
	return true
}

// stuck returns how many of the valid records that were sent are left.
func (l leftover) stuck(sent *fleet.Log) (n int64, err error) {
	err = sent.Scan(func(_ int64, s *fleet.Sent) error {
		if s.Class == "" && (l.pending[s.ID] || l.dispatched.Less(s.ID)) {
			n++
		}
		return nil
	})
	return n, err
}

// judge compares what was sent with what is there.
func (d *demo) judge(ctx context.Context, sent *fleet.Log, invalid map[telemetry.EntryID]bool, left leftover) (*Result, error) {
	rows, err := openRows(ctx, d.cfg.PostgresURL, store.Scope{Stream: d.cfg.Stream, Group: d.cfg.Group})
	if err != nil {
		return nil, err
	}
	defer rows.close()
	deferred, err := rows.deferred(ctx)
	if err != nil {
		return nil, err
	}
	for _, id := range deferred {
		left.pending[id] = true
	}
	o, err := oracle.New(sent)
	if err != nil {
		return nil, err
	}
	report, err := o.Judge(oracle.Observed{
		Positions: rows.positions(ctx), DeadLetters: observer.Letters(d.letters.All(ctx)),
		Pending: observer.Among(left.pending), Dispatched: (*oracle.ID)(&left.dispatched),
	})
	if err != nil {
		return nil, err
	}
	account := report.Account.Over(left.at.Sub(d.began))
	if !account.Balanced() {
		return nil, errors.New("the account does not add up: entries are not stored + duplicates + dead-lettered + pending + lost")
	}
	r := &Result{Account: account, Findings: report.Examples, Invalid: int64(len(invalid))}
	if r.Stuck, err = left.stuck(sent); err != nil {
		return nil, err
	}
	f, err := gather(d.cfg.Metrics)
	if err != nil {
		return nil, err
	}
	r.P50, r.Timed = f.latency.quantile(.5)
	r.P99, _ = f.latency.quantile(.99)
	return r, nil
}
