package scenarios

import (
	"context"
	"fmt"
	"time"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/observer"
	"github.com/trmtracking/processor/loadtest/oracle"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// outageLasts is how long a server is away, longer than MEMBER_TTL and the grace of a member
// without Postgres, and recoverWithin how long the service may take afterwards until nothing
// unfinished is older than a second.
const (
	outageLasts   = 8 * time.Second
	recoverWithin = 10 * time.Second
)

func outage() Scenario {
	return Scenario{
		Name: "outage",
		About: "Redis and Postgres stop, crash, freeze and fill up for a while; then one instance alone is cut off from each " +
			"(on named servers everything is done to connections).",
		Bounds: "10 s after the end of each nothing unfinished is older than a second, and no shard was taken by force; one that is cut off alone loses its shards within 10 s, " +
			"13 s where Postgres is a black hole; no instance exits",
		Plan:    Plan{Instances: 2, Devices: 500, Rate: 2000, Duration: 2 * time.Second, Profile: profileIncidents},
		Breaks:  true,
		proxied: true,
		durable: true,
		run: func(ctx context.Context, r *run) error {
			if err := r.startLoadFor(ctx, endless, fleet.AtSpeed(1)); err != nil {
				return err
			}
			for _, o := range r.outages() {
				if err := testbed.Pause(ctx, r.plan.Duration); err != nil {
					return err
				}
				if err := r.inject(ctx, o); err != nil {
					return err
				}
			}
			return r.isolateOne(ctx)
		},
	}
}

// trouble is an outage that can be ended.
type trouble struct {
	name       string
	begin, end func(ctx context.Context) error
}

// outages returns those of whole servers.
func (r *run) outages() []trouble {
	if r.environment.Env == nil {
		return []trouble{
			r.everywhere("Redis away", func(in *testbed.Instance) *devenv.Proxy { return in.Redis }, (*devenv.Proxy).Refuse),
			r.everywhere("Redis silent", func(in *testbed.Instance) *devenv.Proxy { return in.Redis }, (*devenv.Proxy).Stall),
			r.everywhere("Postgres away", func(in *testbed.Instance) *devenv.Proxy { return in.Postgres }, (*devenv.Proxy).Refuse),
			r.everywhere("Postgres silent", func(in *testbed.Instance) *devenv.Proxy { return in.Postgres }, (*devenv.Proxy).Stall),
		}
	}
	redis, postgres := r.environment.Env.Redis, r.environment.Env.Postgres
	atOnce := func(f func() error) func(context.Context) error { return func(context.Context) error { return f() } }
	return []trouble{
		{"Redis stops", redis.Stop, redis.Start},
		{"Redis is killed", atOnce(redis.Kill), redis.Start},
		{"Redis is frozen", atOnce(redis.Pause), atOnce(redis.Resume)},
		{"Postgres stops", postgres.Stop, postgres.Start},
		{"Postgres is killed", atOnce(postgres.Kill), postgres.Start},
		{"Postgres is frozen", atOnce(postgres.Pause), atOnce(postgres.Resume)},
		{
			"Redis is full",
			func(ctx context.Context) error { return r.environment.FillRedis(ctx, true) },
			func(ctx context.Context) error { return r.environment.FillRedis(ctx, false) },
		},
		r.refusing("the disk of Postgres is full", observer.DiskFull),
	}
}

// refusing has Postgres refuse what is stored.
func (r *run) refusing(name, code string) trouble {
	refuse := func(code string) func(context.Context) error {
		return func(ctx context.Context) error { return r.environment.Observer.Refuse(ctx, code) }
	}
	if code == observer.DiskFull {
		return trouble{name, refuse(code), refuse("")}
	}
	// Any other code may be a record's fault, until none is stored.
	var began time.Time
	return trouble{name, func(ctx context.Context) error {
		began = time.Now()
		return refuse(code)(ctx)
	}, func(ctx context.Context) error {
		err := refuse("")(ctx)
		r.refused(began, "")
		return err
	}}
}

// everywhere does the same to the proxies of all instances.
func (r *run) everywhere(name string, of func(*testbed.Instance) *devenv.Proxy, fault func(*devenv.Proxy) error) trouble {
	each := func(do func(*devenv.Proxy) error) func(context.Context) error {
		return func(context.Context) error {
			for _, in := range r.line.Live() {
				if err := do(of(in)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return trouble{name, each(fault), each((*devenv.Proxy).Resume)}
}

// inject has an outage, and waits until the service has recovered from it.
func (r *run) inject(ctx context.Context, o trouble) error {
	end := r.mark(-1, "%s", o.name)
	began := time.Now()
	if err := o.begin(ctx); err != nil {
		return fmt.Errorf("%s: %w", o.name, err)
	}
	if err := testbed.Pause(ctx, outageLasts); err != nil {
		return err
	}
	if err := o.end(ctx); err != nil {
		return fmt.Errorf("end of %s: %w", o.name, err)
	}
	end()
	back := time.Now()
	err := r.awaitCaughtUp(ctx, time.Second, r.slack(recoverWithin)+30*time.Second)
	r.unforced = append(r.unforced, unforced{o.name, period{began, time.Now()}})
	if err != nil {
		r.check(false, "%s: no recovery: %v", o.name, err)
		return ctx.Err()
	}
	took := time.Since(back)
	r.fact("recovery", "%s for %s: %.2f s after its end nothing was older than a second", o.name, outageLasts, took.Seconds())
	r.check(took <= r.slack(recoverWithin), "%s: %.2f s to recover, want at most %s", o.name, took.Seconds(), recoverWithin)
	return nil
}

// unforced is a span of time in which all are without the same, which is no reason to take a
// shard from one of them.
type unforced struct {
	what string
	period
}

// forced returns how many shards of a stream went from one owner to another in a span of
// time without a release.
func forced(changes []oracle.OwnershipSpan, in period) (n int) {
	owners := make(map[int]string)
	for _, c := range changes {
		was := owners[c.Shard]
		owners[c.Shard] = c.Owner
		if was != "" && c.Owner != "" && was != c.Owner && c.FromUS >= in.from.UnixMicro() && c.FromUS <= in.to.UnixMicro() {
			n++
		}
	}
	return n
}

// awaitCaughtUp waits until nothing unfinished is older than that, twice in a row: the
// entries that the load could not send meanwhile are still to come.
func (r *run) awaitCaughtUp(ctx context.Context, oldest, limit time.Duration) error {
	times := 0
	return testbed.Within(ctx, limit, 100*time.Millisecond, func() error {
		_, age := r.environment.Backlog(ctx)
		_, behind := r.sent()
		if age == nil || *age > oldest.Seconds() || behind > time.Second {
			times = 0
			if age == nil {
				return fmt.Errorf("the age of the oldest unfinished entry is unknown")
			}
			return fmt.Errorf("the oldest unfinished entry is %.1f s old, the load %d ms behind", *age, behind.Milliseconds())
		}
		if times++; times < 2 {
			return fmt.Errorf("not yet seen twice")
		}
		return nil
	})
}

// isolateOne cuts one instance off while the others are well.
func (r *run) isolateOne(ctx context.Context) error {
	for _, f := range []struct {
		name  string
		link  func(*testbed.Instance) *devenv.Proxy
		fault func(*devenv.Proxy) error
		limit time.Duration
	}{
		{"Postgres refused", func(in *testbed.Instance) *devenv.Proxy { return in.Postgres }, (*devenv.Proxy).Refuse, sinkGrace},
		{"Postgres black-holed", func(in *testbed.Instance) *devenv.Proxy { return in.Postgres }, (*devenv.Proxy).Stall, sinkGrace + sinkSilence},
		{"Redis refused", func(in *testbed.Instance) *devenv.Proxy { return in.Redis }, (*devenv.Proxy).Refuse, memberTTL},
		{"Redis black-holed", func(in *testbed.Instance) *devenv.Proxy { return in.Redis }, (*devenv.Proxy).Stall, memberTTL},
	} {
		if err := r.awaitSettled(ctx); err != nil {
			return err
		}
		in, err := r.pick(ctx, dispatcher)
		if err != nil {
			return err
		}
		end := r.mark(in.Slot, "%s to %s", f.name, in.Name)
		since := time.Now()
		if err := f.fault(f.link(in)); err != nil {
			return err
		}
		if err := r.takeover(ctx, span{what: f.name + " to the dispatcher alone", member: in.Member(), from: since}, f.limit+r.slack(takeoverSlack)); err != nil {
			return err
		}
		if err := f.link(in).Resume(); err != nil {
			return err
		}
		end()
		if err := r.awaitCaughtUp(ctx, time.Second, r.slack(recoverWithin)+30*time.Second); err != nil {
			r.check(false, "%s: no recovery: %v", f.name, err)
		}
	}
	return r.awaitSettled(ctx)
}
