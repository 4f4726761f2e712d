package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
)

// Held is the outcome of a change of what is held back.
type Held struct {
	Stream  string         `json:"stream,omitempty"` // of several
	Changed bool           `json:"changed"`          // false if it was so before
	Holds   protocol.Holds `json:"holds"`            // all of the fleet afterwards
}

func (f *Fleet) holds() *store.Holds { return store.NewHolds(f.pool, f.scope, askTimeout) }

// Holds returns what operators hold back.
func (f *Fleet) Holds(ctx context.Context) (protocol.Holds, error) {
	if _, err := f.postgres(ctx); err != nil {
		return nil, err
	}
	h, err := f.holds().Holds(ctx)
	return h, f.explained(err)
}

// Pause stops the dispatching of the whole fleet, or with a shard has no member own
// it: what is dispatched waits on its queue. Nothing is lost while the stream keeps
// its entries.
func (f *Fleet) Pause(ctx context.Context, shard *int, reason string) (Held, error) {
	return f.hold(ctx, target(shard), reason, true)
}

// Resume ends a pause.
func (f *Fleet) Resume(ctx context.Context, shard *int, reason string) (Held, error) {
	return f.hold(ctx, target(shard), reason, false)
}

func target(shard *int) protocol.Hold {
	if shard == nil {
		return protocol.Hold{Kind: protocol.HoldFleet}
	}
	return protocol.Hold{Kind: protocol.HoldShard, Subject: strconv.Itoa(*shard)}
}

// Drain has an instance release its shards and keeps them away from it until Undrain,
// also after a restart. It is named with or without the incarnation of its member. The
// last instance that may own shards cannot be drained.
func (f *Fleet) Drain(ctx context.Context, instance, reason string) (Held, error) {
	identity, err := f.drainable(ctx, instance)
	if err != nil {
		return Held{}, err
	}
	if identity == "" {
		return Held{}, noInstance(instance)
	}
	return f.hold(ctx, protocol.Hold{Kind: protocol.HoldMember, Subject: identity}, reason, true)
}

// CheckDrain returns why an instance cannot be drained in all of these streams: none of them
// has it, or it is the last one that may own shards of one.
func CheckDrain(ctx context.Context, fleets []*Fleet, instance string) error {
	found := false
	for _, f := range fleets {
		identity, err := f.drainable(ctx, instance)
		if err != nil {
			return fmt.Errorf("stream %s: %w", f.scope.Stream, err)
		}
		found = found || identity != ""
	}
	if !found {
		return noInstance(instance)
	}
	return nil
}

// DrainOf is Drain in one of several streams, once CheckDrain has passed. One that the instance does
// not serve stays as it is.
func (f *Fleet) DrainOf(ctx context.Context, instance, reason string) (Held, error) {
	identity, err := f.drainable(ctx, instance)
	if err != nil {
		return Held{}, err
	}
	if identity == "" {
		held, err := f.Holds(ctx)
		return Held{Holds: held}, err
	}
	return f.hold(ctx, protocol.Hold{Kind: protocol.HoldMember, Subject: identity}, reason, true)
}

func noInstance(instance string) error {
	return fault.Exitf(fault.Finding, "no instance is called %s; see processor members", instance)
}

// drainable returns the identity of an instance that may be drained, "" if none has that name.
func (f *Fleet) drainable(ctx context.Context, instance string) (identity string, err error) {
	there, err := f.heartbeats(ctx)
	if err != nil {
		return "", fault.RedisError(f.cfg.Redis, err)
	}
	held, err := f.Holds(ctx)
	if err != nil {
		return "", err
	}
	others := 0
	for _, m := range there {
		switch {
		case isMember(m.Name(), instance):
			identity = m.Instance
		case !m.Leaving && !held.Drained(m.Name()):
			others++
		}
	}
	if identity != "" && others == 0 {
		return "", fault.Exitf(fault.Finding, "no other instance may own shards: nobody would do the work; start one first, or use processor pause")
	}
	return identity, nil
}

// Undrain lets an instance own shards again.
func (f *Fleet) Undrain(ctx context.Context, instance, reason string) (Held, error) {
	held, err := f.Holds(ctx)
	if err != nil {
		return Held{}, err
	}
	i := slices.IndexFunc(held, func(h protocol.Hold) bool {
		return h.Kind == protocol.HoldMember && (h.Subject == instance || isMember(instance, h.Subject))
	})
	if i < 0 {
		return Held{Holds: held}, nil
	}
	return f.hold(ctx, protocol.Hold{Kind: protocol.HoldMember, Subject: held[i].Subject}, reason, false)
}

func (f *Fleet) hold(ctx context.Context, h protocol.Hold, reason string, set bool) (out Held, err error) {
	_, pinned, err := f.changeable(ctx)
	if err != nil {
		return out, err
	}
	if n, err := strconv.Atoi(h.Subject); h.Kind == protocol.HoldShard && (err != nil || n < 0 || n >= pinned.Shards) {
		return out, fault.Exitf(fault.Config, "no shard %s of %d; shards count from 0", h.Subject, pinned.Shards)
	}
	h.By, h.Reason = f.by, reason
	if set {
		out.Changed, err = f.holds().Set(ctx, h)
	} else {
		out.Changed, err = f.holds().Clear(ctx, h)
	}
	if err != nil {
		return out, f.explained(err)
	}
	out.Holds, err = f.holds().Holds(ctx)
	return out, f.explained(err)
}

// HoldText describes a hold.
func HoldText(h protocol.Hold) string {
	what := "dispatching is paused"
	switch h.Kind {
	case protocol.HoldShard:
		what = "shard " + h.Subject + " is paused"
	case protocol.HoldMember:
		what = h.Subject + " is drained"
	}
	text := fmt.Sprintf("%s by %s", what, h.By)
	if h.Reason != "" {
		text += ": " + h.Reason
	}
	return text
}

// errInterrupted is returned by changes that were interrupted and can be repeated.
var errInterrupted = errors.New("interrupted; run it again for the rest")
