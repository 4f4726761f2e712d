package loadtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trmtracking/processor/internal/devenv"
)

// readyWithin is how long an instance may take to start on a busy machine.
const readyWithin = 60 * time.Second

// cluster is the instances of a run: slots, each filled by one instance after
// the other.
type cluster struct {
	program string
	env     []string
	dir     string
	ground  *testbed
	proxied bool
	docker  *docker // nil where instances are processes

	mu    sync.Mutex
	slots []*slot
}

type slot struct {
	present *instance // nil while empty
	past    []*instance
}

// start fills a slot and does not wait until the instance is ready.
func (l *cluster) start(n int) (*instance, error) {
	l.mu.Lock()
	for len(l.slots) <= n {
		l.slots = append(l.slots, &slot{})
	}
	name := fmt.Sprintf("i%d-%d", n+1, len(l.slots[n].past)+1)
	l.mu.Unlock()
	var redis, postgres *devenv.Proxy
	if l.proxied {
		var err error
		if redis, postgres, err = l.proxies(); err != nil {
			return nil, err
		}
	}
	environ, err := l.ground.environ(redis, postgres)
	if err != nil {
		return nil, err
	}
	in, err := launch(l.program, name, n, append(environ, l.env...), l.dir, l.docker)
	if err != nil {
		return nil, err
	}
	in.redis, in.postgres = redis, postgres
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.slots[n]
	s.present = in
	s.past = append(s.past, in)
	return in, nil
}

func (l *cluster) proxies() (redis, postgres *devenv.Proxy, err error) {
	to, err := addrOf(l.ground.redisURL, "6379")
	if err != nil {
		return nil, nil, err
	}
	host := "127.0.0.1"
	if l.docker != nil {
		host = l.docker.gateway()
	}
	if redis, err = devenv.NewProxyAt(host, to); err != nil {
		return nil, nil, err
	}
	if to, err = addrOf(l.ground.postgresURL, "5432"); err == nil {
		postgres, err = devenv.NewProxyAt(host, to)
	}
	if err != nil {
		return nil, nil, errors.Join(err, redis.Close())
	}
	return redis, postgres, nil
}

// startAll fills slots from to to-1 and waits until all are ready.
func (l *cluster) startAll(ctx context.Context, from, to int) error {
	for n := from; n < to; n++ {
		in, err := l.start(n)
		if err != nil {
			return err
		}
		if err := l.ready(ctx, in); err != nil {
			return err
		}
	}
	return nil
}

func (l *cluster) ready(ctx context.Context, in *instance) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyWithin, fmt.Errorf("instance %s is not ready after %s", in.name, readyWithin))
	defer cancel()
	return in.ready(ctx)
}

// current returns the instances that fill slots, in the order of slots.
func (l *cluster) current() []*instance {
	l.mu.Lock()
	defer l.mu.Unlock()
	var present []*instance
	for _, s := range l.slots {
		if s.present != nil {
			present = append(present, s.present)
		}
	}
	return present
}

// live returns those whose processes run.
func (l *cluster) live() []*instance {
	return slices.DeleteFunc(l.current(), (*instance).gone)
}

// all returns every instance so far.
func (l *cluster) all() []*instance {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*instance
	for _, s := range l.slots {
		all = append(all, s.past...)
	}
	return all
}

// identities returns the names of all instances there ever were.
func (l *cluster) identities() []string {
	var names []string
	for _, in := range l.all() {
		names = append(names, in.name)
	}
	return names
}

// size returns the number of slots there ever were.
func (l *cluster) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.slots)
}

// leave takes an instance out of its slot, so that its end is expected.
func (l *cluster) leave(in *instance) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.slots[in.slot].present == in {
		l.slots[in.slot].present = nil
	}
}

// slotOf returns the slot of a member, -1 for one that is not ours.
func (l *cluster) slotOf(member string) int {
	for _, in := range l.all() {
		if member != "" && strings.HasPrefix(member, in.name+".") {
			return in.slot
		}
	}
	return -1
}

// awaitSettled waits until the shards are spread evenly over the live instances.
func (l *cluster) awaitSettled(ctx context.Context, limit time.Duration) error {
	return within(ctx, limit, 25*time.Millisecond, func() error {
		list, err := l.ground.shards.List(ctx)
		if err != nil {
			return err
		}
		live := l.live()
		count := make([]int, len(live))
		for _, s := range list {
			i := slices.IndexFunc(live, func(in *instance) bool { return s.Owner != "" && s.Owner == in.member() })
			if i < 0 {
				return fmt.Errorf("shard %d is owned by %q", s.Shard, s.Owner)
			}
			count[i]++
		}
		if len(list) == 0 || len(live) == 0 || slices.Max(count)-slices.Min(count) > 1 {
			return fmt.Errorf("shards are spread %v over %d instances", count, len(live))
		}
		return nil
	})
}

// released waits until a member owns nothing and everything has an owner.
func (l *cluster) released(ctx context.Context, member string, limit time.Duration) error {
	return within(ctx, limit, 20*time.Millisecond, func() error {
		list, err := l.ground.shards.List(ctx)
		if err != nil {
			return err
		}
		for _, s := range list {
			if s.Owner == "" || s.Owner == member {
				return fmt.Errorf("shard %d is owned by %q", s.Shard, s.Owner)
			}
		}
		return nil
	})
}

// stop ends all instances in an orderly way and reports which did not end clean.
func (l *cluster) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("it still runs after 1m"))
	defer cancel()
	var ends errgroup.Group
	for _, in := range l.live() {
		l.leave(in)
		ends.Go(func() error {
			if err := in.signal(syscall.SIGTERM); err != nil {
				return err
			}
			code, err := in.wait(ctx)
			if err == nil && code != 0 {
				err = fmt.Errorf("instance %s ended with code %d, its log ends with:\n%s", in.name, code, in.tail(3))
			}
			return err
		})
	}
	return ends.Wait()
}

// close ends every process there still is.
func (l *cluster) close() error {
	var errs []error
	for _, in := range l.all() {
		errs = append(errs, in.close())
	}
	return errors.Join(errs...)
}
