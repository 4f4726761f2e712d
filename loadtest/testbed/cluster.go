package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/protocol"
)

// ReadyWithin is how long an instance may take to start on a busy machine.
const ReadyWithin = 60 * time.Second

// Cluster is the instances of a run: slots, each filled by one instance after
// the other.
type Cluster struct {
	Program string
	Env     []string
	Dir     string
	Servers *Servers
	Proxied bool
	Docker  *Docker // nil where instances are processes

	mu    sync.Mutex
	slots []*slot
}

type slot struct {
	present *Instance // nil while empty
	past    []*Instance
}

// Start fills a slot and does not wait until the instance is ready.
func (l *Cluster) Start(n int) (*Instance, error) {
	l.mu.Lock()
	for len(l.slots) <= n {
		l.slots = append(l.slots, &slot{})
	}
	name := fmt.Sprintf("i%d-%d", n+1, len(l.slots[n].past)+1)
	l.mu.Unlock()
	var redis, postgres *devenv.Proxy
	if l.Proxied {
		var err error
		if redis, postgres, err = l.proxies(); err != nil {
			return nil, err
		}
	}
	environ, err := l.Servers.Environ(redis, postgres)
	if err != nil {
		return nil, err
	}
	in, err := launch(l.Program, name, n, append(environ, l.Env...), l.Dir, l.Docker)
	if err != nil {
		return nil, err
	}
	in.Redis, in.Postgres = redis, postgres
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.slots[n]
	s.present = in
	s.past = append(s.past, in)
	return in, nil
}

// Operator returns a command of the program with the environment of the instances.
func (l *Cluster) Operator(ctx context.Context, args ...string) (*exec.Cmd, error) {
	environ, err := l.Servers.Environ(nil, nil)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, l.Program, args...)
	cmd.Env = slices.Concat([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + os.TempDir()}, environ, l.Env)
	return cmd, nil
}

func (l *Cluster) proxies() (redis, postgres *devenv.Proxy, err error) {
	redisURL, postgresURL, err := l.Servers.Reached()
	if err != nil {
		return nil, nil, err
	}
	to, err := addrOf(redisURL, "6379")
	if err != nil {
		return nil, nil, err
	}
	host := "127.0.0.1"
	if l.Docker != nil {
		host = l.Docker.gateway()
	}
	if redis, err = devenv.NewProxyAt(host, to); err != nil {
		return nil, nil, err
	}
	if to, err = addrOf(postgresURL, "5432"); err == nil {
		postgres, err = devenv.NewProxyAt(host, to)
	}
	if err != nil {
		return nil, nil, errors.Join(err, redis.Close())
	}
	return redis, postgres, nil
}

// StartAll fills slots from to to-1 and waits until all are ready.
func (l *Cluster) StartAll(ctx context.Context, from, to int) error {
	for n := from; n < to; n++ {
		in, err := l.Start(n)
		if err != nil {
			return err
		}
		if err := l.Ready(ctx, in); err != nil {
			return err
		}
	}
	return nil
}

// Ready waits until an instance says that it is.
func (l *Cluster) Ready(ctx context.Context, in *Instance) error {
	ctx, cancel := context.WithTimeoutCause(ctx, ReadyWithin, fmt.Errorf("instance %s is not ready after %s", in.Name, ReadyWithin))
	defer cancel()
	return in.ready(ctx)
}

// Current returns the instances that fill slots, in the order of slots.
func (l *Cluster) Current() []*Instance {
	l.mu.Lock()
	defer l.mu.Unlock()
	var present []*Instance
	for _, s := range l.slots {
		if s.present != nil {
			present = append(present, s.present)
		}
	}
	return present
}

// Live returns those whose processes run.
func (l *Cluster) Live() []*Instance {
	return slices.DeleteFunc(l.Current(), (*Instance).Gone)
}

// All returns every instance so far.
func (l *Cluster) All() []*Instance {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*Instance
	for _, s := range l.slots {
		all = append(all, s.past...)
	}
	return all
}

// Identities returns the names of all instances there ever were.
func (l *Cluster) Identities() []string {
	var names []string
	for _, in := range l.All() {
		names = append(names, in.Name)
	}
	return names
}

// Size returns the number of slots there ever were.
func (l *Cluster) Size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.slots)
}

// Unexpected returns the instances that ended by themselves, those that were replaced since
// among them.
func (l *Cluster) Unexpected() []*Instance {
	return slices.DeleteFunc(l.All(), func(in *Instance) bool { return !in.unexpected() })
}

// Leave takes an instance out of its slot, so that its end is expected from now on.
func (l *Cluster) Leave(in *Instance) {
	in.mu.Lock()
	in.left = in.left || !in.Gone()
	in.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.slots[in.Slot].present == in {
		l.slots[in.Slot].present = nil
	}
}

// SlotOf returns the slot of a member, -1 for one that is not ours.
func (l *Cluster) SlotOf(member string) int {
	for _, in := range l.All() {
		if member != "" && strings.HasPrefix(member, in.Name+".") {
			return in.Slot
		}
	}
	return -1
}

// settledFor is how long nothing may have moved for a fleet to count as settled: a plan
// moves a few shards at a time, with nothing between them but a few milliseconds.
const settledFor = 300 * time.Millisecond

// AwaitSettled waits until the live instances share all shards and none moves. They are
// placed by load, so their numbers may differ: each has at least a quarter of an equal share.
func (l *Cluster) AwaitSettled(ctx context.Context, limit time.Duration) error {
	var epochs int64
	var since time.Time
	return Within(ctx, limit, 25*time.Millisecond, func() error {
		list, err := l.Servers.allShards(ctx)
		if err != nil {
			return err
		}
		live := l.Live()
		count := make([]int, len(live))
		var sum int64
		for _, s := range list {
			i := slices.IndexFunc(live, func(in *Instance) bool { return s.Owner != "" && s.Owner == in.Member() })
			if i < 0 || s.Assigned != s.Owner {
				return fmt.Errorf("shard %d is owned by %q and assigned to %q", s.Shard, s.Owner, s.Assigned)
			}
			count[i]++
			sum += s.Epoch
		}
		if len(list) == 0 || len(live) == 0 || 4*len(live)*slices.Min(count) < len(list) {
			return fmt.Errorf("shards are spread %v over %d instances", count, len(live))
		}
		if sum != epochs {
			epochs, since = sum, time.Now()
		}
		if time.Since(since) < settledFor {
			return fmt.Errorf("shards moved %v ago", time.Since(since))
		}
		return nil
	})
}

// allShards returns the shards of all streams.
func (g *Servers) allShards(ctx context.Context) (all []protocol.Shard, err error) {
	for _, s := range g.All() {
		list, err := s.shards.List(ctx)
		if err != nil {
			return nil, err
		}
		if len(list) == 0 {
			return nil, fmt.Errorf("stream %s has no shards", s.Stream)
		}
		all = append(all, list...)
	}
	return all, nil
}

// Released waits until a member owns nothing and everything has an owner.
func (l *Cluster) Released(ctx context.Context, member string, limit time.Duration) error {
	return Within(ctx, limit, 20*time.Millisecond, func() error {
		list, err := l.Servers.allShards(ctx)
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

// Stop ends all instances in an orderly way and reports which did not end clean.
func (l *Cluster) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("it still runs after 1m"))
	defer cancel()
	var ends errgroup.Group
	for _, in := range l.Live() {
		l.Leave(in)
		ends.Go(func() error {
			if err := in.Signal(syscall.SIGTERM); err != nil {
				return err
			}
			code, err := in.Wait(ctx)
			if err == nil && code != 0 {
				err = fmt.Errorf("instance %s ended with code %d, its log ends with:\n%s", in.Name, code, in.Tail(3))
			}
			return err
		})
	}
	return ends.Wait()
}

// Close ends every process there still is.
func (l *Cluster) Close() error {
	var errs []error
	for _, in := range l.All() {
		errs = append(errs, in.close())
	}
	return errors.Join(errs...)
}
