package testbed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/trmtracking/processor/loadtest/fleet"
)

// Load is everything a run sends, fleet by fleet, into one send log.
type Load struct {
	ground *Servers
	log    *slog.Logger
	path   string
	file   *os.File
	Writer *fleet.LogWriter

	Earlier atomic.Int64                 // sent by the fleets before
	Present atomic.Pointer[fleet.Sender] // nil between fleets
	done    chan struct{}                // closed when the present one has ended
	err     error                        // of its Run; read after done
	stop    context.CancelFunc
	paced   bool          // the present one has a plan to be behind of
	began   time.Time     // of the present one
	cpu     time.Duration // of this process when it began
	Sending time.Duration // that all fleets took together
	Spent   time.Duration // CPU time of this process meanwhile
	Worst   time.Duration
}

// NewLoad returns a load that keeps its send log in dir.
func NewLoad(g *Servers, dir string, log *slog.Logger) (*Load, error) {
	l := &Load{ground: g, log: log, path: filepath.Join(dir, "send.log")}
	var err error
	if l.file, err = os.Create(l.path); err != nil {
		return nil, fmt.Errorf("make the send log: %w", err)
	}
	if l.Writer, err = fleet.NewLogWriter(l.file); err != nil {
		return nil, errors.Join(err, l.file.Close())
	}
	return l, nil
}

// Begin sends a fleet in the background, with the devices of the stream.
func (l *Load) Begin(ctx context.Context, p fleet.Profile, pacer fleet.Pacer) error {
	p.First = l.ground.first
	source, err := p.Source()
	if err != nil {
		return err
	}
	// A pipeline is sent when the one before is answered: the longer the answer
	// takes, the more has to go into one.
	cfg := fleet.DefaultSenderConfig()
	cfg.MaxBatchRecords = 4 * cfg.MaxBatchRecords
	sender, err := fleet.NewSender(cfg, source, pacer, l.ground.Publisher, l.Writer, l.log)
	if err != nil {
		return err
	}
	ctx, l.stop = context.WithCancel(ctx)
	l.done = make(chan struct{})
	l.began, l.cpu, l.paced = time.Now(), ownCPU(), pacer != fleet.AtSpeed(0)
	l.Present.Store(sender)
	go func() {
		defer close(l.done)
		l.err = sender.Run(ctx)
	}()
	return nil
}

// End waits until the fleet has sent everything, or stops it early, and finds
// out what became of entries whose reply was lost.
func (l *Load) End(ctx context.Context, early bool) error {
	sender := l.Present.Load()
	if sender == nil {
		return nil
	}
	if early {
		l.stop()
	}
	select {
	case <-l.done:
		l.stop()
		if l.err != nil {
			return fmt.Errorf("send the load: %w", l.err)
		}
	case <-ctx.Done():
		l.stop()
		<-l.done
		return context.Cause(ctx)
	}
	l.Sending += time.Since(l.began)
	l.Spent += ownCPU() - l.cpu
	err := Within(ctx, ServerTimeout, 100*time.Millisecond, func() error {
		_, err := sender.Settle(ctx, l.ground.Inspector)
		return err
	})
	l.Earlier.Add(sender.Progress().Sent)
	if l.paced {
		l.Worst = max(l.Worst, sender.Progress().Worst)
	}
	l.Present.Store(nil)
	return errors.Join(err, l.Writer.Flush())
}

// Sent returns how many entries are known to be on the stream, and by how much the
// load is behind its plan.
func (l *Load) Sent() (int64, time.Duration) {
	n := l.Earlier.Load()
	if s := l.Present.Load(); s != nil {
		p := s.Progress()
		return n + p.Sent, p.Behind
	}
	return n, 0
}

// Open returns the send log for reading, after the last fleet has ended.
func (l *Load) Open() (*fleet.Log, error) { return fleet.OpenLog(l.path) }

// Close ends the fleet that is sending and closes the send log.
func (l *Load) Close() error {
	if l.Present.Load() != nil {
		l.stop()
		<-l.done
	}
	return l.file.Close()
}
