package scenarios

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/oracle"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// longestRefusal is longer than all attempts to store an entry take, so that some of those
// refused become dead letters and others are stored.
const longestRefusal = 14 * time.Second

// refusable reports whether records may be refused: the database has to note which entries
// were deferred for it.
func (r *run) refusable() bool { return r.environment.Env != nil && r.environment.Dated }

// refuseDevices has the records of some devices refused for a while: of few, each of which
// counts as the record's own fault, or of many, which may be the database's.
func (r *run) refuseDevices(ctx context.Context, dice *rand.Rand) error {
	n := 1 + dice.IntN(3)
	if dice.IntN(3) == 0 {
		n += 6
	}
	var devices []string
	for range n {
		devices = append(devices, fleet.DeviceID(r.anyStream(dice).servers.First()+dice.IntN(r.devices())))
	}
	lasts := between(dice, time.Second, longestRefusal)
	defer r.mark(-1, "records of %d devices refused", n)()
	began := time.Now()
	if err := r.refuse(ctx, devices); err != nil {
		return err
	}
	err := testbed.Pause(ctx, lasts)
	if err := r.refuse(ctx, []string{}); err != nil {
		return err
	}
	r.refused(began, devices...)
	return err
}

// refused notes devices whose records the database has refused until now; "" is all.
func (r *run) refused(began time.Time, devices ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range devices {
		r.refusals = append(r.refusals, oracle.Refusal{Device: d, FromUS: began.UnixMicro(), ToUS: time.Now().UnixMicro()})
	}
}

// refuse has the records of these devices refused, as soon as Postgres is there.
func (r *run) refuse(ctx context.Context, devices []string) error {
	err := testbed.Within(ctx, testbed.ReadyWithin, 100*time.Millisecond, func() error { return r.environment.Observer.RefuseDevices(ctx, devices) })
	if err != nil {
		return fmt.Errorf("refuse devices: %w", err)
	}
	return nil
}
