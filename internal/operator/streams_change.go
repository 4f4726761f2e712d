package operator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
)

// AddedStream is a stream that instances may serve from now on.
type AddedStream struct {
	Stream  string `json:"stream"`
	Group   string `json:"group"`
	Changed bool   `json:"changed"` // false if it was there before
	Shards  int    `json:"shards"`
	Length  int64  `json:"length"` // of what is in it already
}

// AddStreams prepares streams for the fleet of the list in cfg: it makes their rows and their
// groups, at the start of each stream, so that from now on nothing is trimmed before it is read without
// being accounted for. Nothing is changed unless all of them can be processed. list is what
// REDIS_TELEMETRY_STREAM of the instances is to be.
func AddStreams(ctx context.Context, cfg config.Config, names []string, name, by string) (added []AddedStream, list string, err error) {
	first, like, known, err := openDatabase(ctx, cfg, name, by)
	if err != nil {
		return nil, "", err
	}
	defer first.Close()
	group := cfg.Redis.Group
	listed := cfg.Redis.Streams()
	beside := slices.Clone(listed)
	for _, k := range known {
		if !slices.Contains(beside, k.Stream) {
			beside = append(beside, k.Stream)
		}
	}
	beside = append(beside, names...)
	var fleets []*Fleet
	defer func() {
		for _, f := range fleets {
			f.Close()
		}
	}()
	for _, n := range names {
		if err := cfg.Redis.CheckBeside(n, beside); err != nil {
			return nil, "", fault.Exit(fault.Config, err)
		}
		for _, k := range known {
			if k.Stream == n && k.Group != group {
				return nil, "", fault.Exitf(fault.Config, "stream %s is processed by group %s in this database, and this fleet is of group %s: "+
					"correct REDIS_CONSUMER_GROUP, or name another stream; nothing was changed", n, k.Group, group)
			}
		}
		one := cfg
		one.Redis = cfg.Redis.Of(n, group)
		f, err := Open(ctx, one, name, by)
		if err != nil {
			return nil, "", err
		}
		fleets = append(fleets, f)
		g, _, err := f.sameFleet(ctx)
		if err != nil {
			return nil, "", fmt.Errorf("stream %s: %w", n, err)
		}
		info, err := g.Info(ctx)
		if err != nil {
			return nil, "", fault.Exitf(fault.Config, "stream %s: %w; nothing was changed", n, err)
		}
		added = append(added, AddedStream{Stream: n, Group: group, Shards: like.pinned.Shards, Length: info.Length})
	}
	for _, n := range listed {
		if _, _, err := first.of(store.Scope{Stream: n, Group: group}).sameFleet(ctx); err != nil {
			return nil, "", fmt.Errorf("stream %s: %w", n, err)
		}
	}
	streams := store.NewStreams(first.pool, askTimeout)
	for i, f := range fleets {
		made, err := streams.Add(ctx, f.scope, like.scope, by)
		if err != nil {
			return nil, "", fault.Exit(fault.Config, f.explained(err))
		}
		pinned, err := f.postgres(ctx)
		if err != nil {
			return nil, "", err
		}
		added[i].Changed, added[i].Shards = made > 0, pinned.Shards
		if err := f.makeGroup(ctx, pinned.Shards); err != nil {
			return nil, "", fmt.Errorf("stream %s: its rows were made, its group was not; run it again: %w", f.scope.Stream, err)
		}
		if !slices.Contains(listed, f.scope.Stream) {
			listed = append(listed, f.scope.Stream)
		}
	}
	return added, strings.Join(listed, ","), nil
}

// pinnedScope is a stream with what is pinned for it.
type pinnedScope struct {
	scope  store.Scope
	pinned store.FleetSettings
}

// openDatabase opens the first stream of the list, and returns a stream whose settings are
// those of the fleet, and all streams that the database knows.
func openDatabase(ctx context.Context, cfg config.Config, name, by string) (first *Fleet, like pinnedScope, known []store.StreamRow, err error) {
	opened, err := Open(ctx, cfg.PerStream()[0], name, by)
	if err != nil {
		return nil, like, nil, err
	}
	defer func() {
		if err != nil {
			opened.Close()
		}
	}()
	l, err := opened.lists(ctx)
	if err != nil {
		return nil, like, nil, err
	}
	if known, err = l.Streams(ctx); err != nil {
		return nil, like, nil, opened.explained(err)
	}
	candidates := slices.Clone(known)
	slices.SortStableFunc(candidates, func(a, b store.StreamRow) int { // those of the list first
		return slices.Index(append(cfg.Redis.Streams(), a.Stream), a.Stream) - slices.Index(append(cfg.Redis.Streams(), b.Stream), b.Stream)
	})
	for _, k := range candidates {
		if k.Group != cfg.Redis.Group {
			continue
		}
		scope := store.Scope{Stream: k.Stream, Group: k.Group}
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		pinned, err := store.ReadFleetSettings(ctx, opened.pool, scope)
		cancel()
		if err != nil {
			return nil, like, nil, opened.explained(err)
		}
		if pinned.Shards > 0 {
			return opened, pinnedScope{scope, pinned}, known, nil
		}
	}
	return nil, like, nil, errNeverStarted
}

// makeGroup has the group made as a dispatcher makes it, unless a member dispatches: then it
// is there.
func (f *Fleet) makeGroup(ctx context.Context, shards int) error {
	g, err := f.redis(ctx, shards)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	token := rand.Text()
	lease, err := g.AcquireDispatchLease(ctx, "", token, time.Second)
	if err != nil || !lease.Acquired {
		return err
	}
	return g.ReleaseDispatchLease(ctx, token)
}

// StreamRest is what is left of a stream. Nil is unknown.
type StreamRest struct {
	Stream        string   `json:"stream"`
	Group         string   `json:"group"`
	Served        bool     `json:"served"`         // an instance served it at some time
	Drained       bool     `json:"drained"`        // nothing is left but dead letters, devices and members
	Lag           *int64   `json:"lag"`            // not dispatched yet
	Pending       int64    `json:"pending"`        // dispatched, not acknowledged
	Deferred      int64    `json:"deferred"`       // wait for a retry
	Requests      int64    `json:"requests"`       // not finished
	Unrecorded    int64    `json:"unrecorded"`     // losses that are not in the ledger yet
	Unconfirmed   int64    `json:"unconfirmed"`    // dead letters on their way
	DeadLetters   int64    `json:"dead_letters"`   // that were neither replayed nor dropped
	Members       []string `json:"members"`        // whose list has it
	Devices       int64    `json:"devices"`        // that came from it last
	LastAdded     *string  `json:"last_added"`     // ID of its last entry; null if it never had one
	QuietSeconds  *float64 `json:"quiet_seconds"`  // since that; null while its ID is ahead of the clock
	AddedMeantime int64    `json:"added_meantime"` // entries that came while it was drained
}

// Left names what is not done, in words.
func (r *StreamRest) Left() (left []string) {
	if r.Lag == nil {
		left = append(left, "an unknown number of entries not dispatched")
	} else if *r.Lag > 0 {
		left = append(left, cli.Count(*r.Lag, "entry")+" not dispatched")
	}
	for _, x := range []struct {
		n    int64
		what string
		tell string
	}{
		{r.Pending, "entry", "pending"},
		{r.Deferred, "entry", "deferred"},
		{r.Requests, "request", "not finished"},
		{r.Unrecorded, "loss", "not in the ledger yet"},
		{r.Unconfirmed, "dead letter", "not confirmed yet"},
	} {
		if x.n > 0 {
			left = append(left, fmt.Sprintf("%s %s", cli.Count(x.n, x.what), x.tell))
		}
	}
	return left
}

// rest asks what is left of the stream.
func (f *Fleet) rest(ctx context.Context) (r StreamRest, added int64, err error) {
	r = StreamRest{Stream: f.scope.Stream, Group: f.scope.Group, Members: []string{}}
	pinned, err := f.postgres(ctx)
	if err != nil {
		return r, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	// First what comes, then where it goes: what moves on meanwhile is counted twice, not missed.
	group, err := f.redis(ctx, pinned.Shards)
	if err != nil {
		return r, 0, err
	}
	info, err := group.Info(ctx)
	if err != nil {
		return r, 0, err
	}
	added, r.Pending = info.Added, info.Pending
	switch {
	case !info.Exists:
		r.Lag = new(int64)
	case info.GroupExists && info.Lag.Known:
		r.Lag = &info.Lag.N
	case !info.GroupExists:
		removed, err := group.Removed(ctx)
		if err != nil {
			return r, 0, err
		}
		n := info.Length // all of it is dispatched again once there is a group
		if removed == info.Last {
			n = 0 // a removal that was interrupted
		}
		r.Lag = &n
	}
	if !info.Last.IsZero() {
		text := info.Last.String()
		r.LastAdded = &text
		r.QuietSeconds, _ = ageOf(info.Last)
	}
	if r.Unrecorded, err = group.Unrecorded(ctx); err != nil {
		return r, 0, err
	}
	l, err := store.NewStreams(f.pool, askTimeout).LeftOver(ctx, f.scope)
	if err != nil {
		return r, 0, f.explained(err)
	}
	r.Deferred, r.Unconfirmed, r.Requests, r.Devices, r.Served = l.Deferred, l.Unconfirmed, l.Requests, l.Devices, l.Served
	dead, err := stream.NewDeadLetters(f.client, f.where(1), f.cfg.Redis.DLQStream)
	if err != nil {
		return r, 0, err
	}
	if r.DeadLetters, err = dead.Length(ctx); err != nil {
		return r, 0, err
	}
	there, err := f.heartbeats(ctx)
	if err != nil {
		return r, 0, err
	}
	for _, m := range there {
		r.Members = append(r.Members, m.Name())
	}
	slices.Sort(r.Members)
	r.Drained = len(r.Left()) == 0
	return r, added, nil
}

// ofDatabase returns the fleet of a stream that the database knows, whether it is listed or
// not.
func ofDatabase(ctx context.Context, cfg config.Config, of, name, by string) (*Fleet, []store.StreamRow, error) {
	first, _, known, err := openDatabase(ctx, cfg, name, by)
	if err != nil {
		return nil, nil, err
	}
	defer first.Close()
	i := slices.IndexFunc(known, func(k store.StreamRow) bool { return k.Stream == of && k.Group == cfg.Redis.Group })
	if i < 0 {
		i = slices.IndexFunc(known, func(k store.StreamRow) bool { return k.Stream == of })
	}
	if i < 0 {
		return nil, known, fault.Exitf(fault.Config, "no stream of this database is called %s; see processor streams", of)
	}
	one := cfg
	one.Redis = cfg.Redis.Of(of, known[i].Group)
	f, err := Open(ctx, one, name, by)
	return f, known, err
}

// DrainStream waits until nothing of a stream is left to do and nothing has been added to it
// for the time quiet, and tells onProgress what it waits for. It changes nothing: dispatching goes on, so
// that what publishers still send is processed. With an error it returns what is left.
func DrainStream(ctx context.Context, cfg config.Config, of string, quiet time.Duration, name, by string, onProgress func(waiting string)) (r StreamRest, err error) {
	f, _, err := ofDatabase(ctx, cfg, of, name, by)
	if err != nil {
		return r, err
	}
	defer f.Close()
	said := ""
	var before, last int64
	var moved time.Time
	for first := true; ; first = false {
		rest, added, err := f.rest(ctx)
		if err != nil && ctx.Err() == nil {
			return r, err
		}
		if err == nil {
			r = rest
			if first {
				before, last = added, added
				if rest.QuietSeconds != nil {
					moved = time.Now().Add(-time.Duration(*rest.QuietSeconds * float64(time.Second)))
				} else if rest.LastAdded != nil {
					moved = time.Now()
				}
			}
			if added != last {
				last, moved = added, time.Now()
			}
			r.AddedMeantime = added - before
			waiting := drainWaits(&r, time.Since(moved) < quiet)
			if waiting == "" {
				return r, nil
			}
			if waiting != said && onProgress != nil {
				said = waiting
				onProgress(waiting)
			}
		}
		select {
		case <-ctx.Done():
			return r, fault.Exitf(fault.Finding, "not drained in time: %s", said)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// drainWaits says what a drain waits for, "" for nothing.
func drainWaits(r *StreamRest, recent bool) string {
	left := strings.Join(r.Left(), ", ")
	switch {
	case left != "" && len(r.Members) == 0:
		return left + ", and no instance serves the stream: start one with " + r.Stream + " in REDIS_TELEMETRY_STREAM"
	case left != "" && recent:
		return left + ", and entries still come: switch the publishers to other streams"
	case left != "":
		return left
	case recent:
		return "all is done, and entries came a moment ago: switch the publishers to other streams"
	}
	return ""
}

// RemovedStream is the outcome of removing a stream.
type RemovedStream struct {
	Stream  string `json:"stream"`
	Group   string `json:"group"`
	Shards  int    `json:"shards"`
	Given   int64  `json:"devices"` // that belong to another stream now
	GivenTo string `json:"devices_to,omitempty"`
}

// served reports as an error that a Redis knows nothing of a stream that instances served:
// it may be another one than theirs, where nothing is left to do since nothing is there.
func (f *Fleet) served(ctx context.Context, group *stream.Group) error {
	d, err := group.FleetDatabase(ctx)
	if err != nil {
		return err
	}
	removed, err := group.Removed(ctx)
	if err != nil || d.ID != "" || !removed.IsZero() {
		return err
	}
	return fault.Exitf(fault.Config, "instances served this stream, and Redis at %s knows nothing of them: correct REDIS_URL; nothing was changed", f.cfg.Redis.URL.Addresses())
}

// RemoveStream takes what the fleet keeps for a stream out of Redis and Postgres. It is refused
// while anything of it is left to do or a member serves it. Its devices, if there are any, belong to the stream
// devicesTo afterwards; positions, crossings, ledger, incidents and audit stay.
func RemoveStream(ctx context.Context, cfg config.Config, of, devicesTo, name, by string) (out RemovedStream, err error) {
	f, known, err := ofDatabase(ctx, cfg, of, name, by)
	if err != nil {
		return out, err
	}
	defer f.Close()
	out = RemovedStream{Stream: of, Group: f.scope.Group}
	there, _, err := f.changeable(ctx)
	if err != nil {
		return out, err
	}
	i := slices.IndexFunc(known, func(k store.StreamRow) bool { return k.Stream == devicesTo && k.Group == f.scope.Group })
	if devicesTo != "" && (i < 0 || devicesTo == of) {
		return out, fault.Exitf(fault.Config, "--devices-to %s: want another stream of the group; see processor streams", devicesTo)
	}
	r, _, err := f.rest(ctx)
	if err != nil {
		return out, err
	}
	if err := removable(&r, devicesTo); err != nil {
		return out, err
	}
	if r.Served {
		if err := f.served(ctx, there); err != nil {
			return out, err
		}
	}
	list, err := f.shards().List(ctx)
	if err != nil {
		return out, f.explained(err)
	}
	ended := make(map[string]bool)
	sessions := store.NewSessions(f.pool, askTimeout)
	for _, s := range list { // an owner that is gone without a release might still commit
		if s.Owner != "" && !ended[s.Owner] {
			ended[s.Owner] = true
			if _, err := sessions.End(ctx, s.Owner); err != nil {
				return out, f.explained(err)
			}
		}
	}
	group, err := f.redis(ctx, len(list))
	if err != nil {
		return out, err
	}
	streams := store.NewStreams(f.pool, askTimeout)
	if r.Devices > 0 {
		out.GivenTo = devicesTo
		if out.Given, err = streams.Give(ctx, f.scope, store.Scope{Stream: devicesTo, Group: f.scope.Group}); err != nil {
			return out, f.explained(err)
		}
	}
	out.Shards, err = streams.Remove(ctx, f.scope, by, group.RemoveGroup)
	if errors.Is(err, store.ErrNotDone) {
		err = fault.Exit(fault.Finding, err)
	}
	if err = f.explained(err); err != nil && out.Given > 0 {
		err = fmt.Errorf("%w; %s given to %s all the same", err, cli.CountWere(out.Given, "device"), devicesTo)
	}
	return out, err
}

// removable returns why a stream cannot be removed now.
func removable(r *StreamRest, devicesTo string) error {
	var why []string
	never := *r // what was never dispatched was never ours to finish
	if !r.Served {
		never.Lag = new(int64)
	}
	if left := never.Left(); len(left) > 0 {
		why = append(why, strings.Join(left, ", ")+": processor streams drain "+r.Stream+" waits for that")
	}
	if r.DeadLetters > 0 {
		why = append(why, cli.Count(r.DeadLetters, "dead letter")+": replay or drop them (REDIS_TELEMETRY_STREAM="+r.Stream+" processor dlq list)")
	}
	if len(r.Members) > 0 {
		why = append(why, "it is in the list of "+strings.Join(r.Members, ", ")+": take it out of REDIS_TELEMETRY_STREAM and restart them")
	}
	if r.Devices > 0 && devicesTo == "" {
		why = append(why, cli.Count(r.Devices, "device")+" came from it last, and changes of fences would not reach them any more: say which stream has them from now on with --devices-to")
	}
	if len(why) == 0 {
		return nil
	}
	return fault.Exitf(fault.Finding, "stream %s cannot be removed, nothing was changed:\n  %s", r.Stream, strings.Join(why, "\n  "))
}
