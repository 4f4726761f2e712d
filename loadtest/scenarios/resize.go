package scenarios

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/trmtracking/processor/loadtest/oracle"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// resizeWithin bounds a change of the number of shards, with servers away meanwhile.
const resizeWithin = 3 * time.Minute

// resize changes the number of shards as an operator does: it calls the command, stops
// the instances when that says so and starts them with the new number. A command that was
// interrupted is called again, and one is interrupted on purpose.
func (r *run) resize(ctx context.Context, dice *rand.Rand) error {
	ctx, cancel := context.WithTimeoutCause(ctx, resizeWithin, fmt.Errorf("not within %s", resizeWithin))
	defer cancel()
	to := testbed.Shards + 1 + dice.IntN(testbed.Shards/2)
	if dice.IntN(2) == 0 {
		to -= testbed.Shards * 5 / 8
	}
	interrupt, kill := dice.IntN(2) == 0, dice.IntN(2) == 0
	defer r.mark(-1, "%d shards instead of %d", to, testbed.Shards)()
	for {
		err := r.resizeOnce(ctx, to, interrupt, kill)
		if err == nil {
			break
		}
		r.mark(-1, "resize again: %v", err)()
		interrupt = false
		if err := testbed.Pause(ctx, time.Second); err != nil {
			return err
		}
	}
	r.resizedTo = to
	r.line.Env = append(r.line.Env, fmt.Sprintf("SHARDS=%d", to))
	return r.startAll()
}

// resizeOnce calls the command until it ends, and does what it asks for.
func (r *run) resizeOnce(ctx context.Context, to int, interrupt, kill bool) (err error) {
	cmd, err := r.line.Operator(ctx, "shards", "resize", fmt.Sprint(to), "--timeout", "1m")
	if err != nil {
		return err
	}
	said := make(chan string, 100)
	cmd.Stderr = lines(said)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("processor shards resize: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	last := ""
	defer func() { // the command ends before the run does
		_ = cmd.Process.Kill()
		if err != nil && ctx.Err() == nil {
			err = errors.Join(err, errors.New(last))
		}
	}()
	for {
		select {
		case err := <-ended:
			return err
		case text := <-said:
			switch last = strings.Join(strings.Fields(text), " "); {
			case strings.Contains(last, "start one with the old number"):
				err = r.startAll()
			case strings.Contains(last, "stop the instances now"):
				if interrupt {
					_ = cmd.Process.Kill()
				}
				err = r.stopAll(ctx, kill)
			}
			if err != nil {
				return err
			}
		}
	}
}

// lines sends what is written.
type lines chan<- string

// Write implements io.Writer.
func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

// stopAll ends all instances, each in order or the first of them with SIGKILL.
func (r *run) stopAll(ctx context.Context, kill bool) error {
	for i, in := range r.line.Live() {
		signal := syscall.SIGTERM
		if kill && i == 0 {
			signal = syscall.SIGKILL
		}
		r.line.Leave(in)
		if err := in.Signal(signal); err != nil {
			return err
		}
		if _, err := in.Wait(ctx); err != nil {
			return err
		}
	}
	r.resizedUS = time.Now().UnixMicro()
	return nil
}

// startAll fills the slots that are empty.
func (r *run) startAll() error {
	current := r.line.Current()
	for slot := range r.plan.Instances {
		if slices.ContainsFunc(current, func(in *testbed.Instance) bool { return in.Slot == slot }) {
			continue
		}
		if _, err := r.line.Start(slot); err != nil {
			return err
		}
	}
	return nil
}

// shards returns how many shards there were when.
func (r *run) shards() oracle.Shards {
	if r.resizedTo == 0 {
		return oracle.Always(testbed.Shards)
	}
	return func(atUS int64) int {
		if atUS < r.resizedUS {
			return testbed.Shards
		}
		return r.resizedTo
	}
}
