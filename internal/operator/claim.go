package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
)

// claimPage is the number of entries of a foreign consumer moved in one step.
const claimPage = 500

// claimTimeout bounds a claim of a consumer with very many entries.
const claimTimeout = 10 * time.Minute

// Claim says what to move: the shards of a member, one shard, or the entries of a
// foreign consumer.
type Claim struct {
	Member   string // instance, with or without incarnation
	Shard    *int
	Consumer string
	MinIdle  time.Duration // of a consumer's entries: how long pending, at least
	DryRun   bool
}

// Claimed is what was moved, or would be.
type Claimed struct {
	DryRun   bool           `json:"dry_run"`
	Note     string         `json:"note,omitempty"` // why there was nothing to move
	Shards   []claimedShard `json:"shards,omitempty"`
	Consumer string         `json:"consumer,omitempty"`
	Entries  int            `json:"entries"`
	Lost     int            `json:"lost"` // trimmed while pending, recorded in the ledger
	Queues   map[string]int `json:"queues,omitempty"`
	Sessions int            `json:"sessions_ended"`
	Left     []string       `json:"sessions_left,omitempty"` // that this role may not end, and what does
}

// claimedShard is a shard that moves.
type claimedShard struct {
	Shard int    `json:"shard"`
	From  string `json:"from"`
	To    string `json:"to"` // "" if the assignment is unchanged
}

// Claim moves shards away from their owner, who can no longer commit for them, or
// the pending entries of a foreign consumer to the queues of their shards.
func (f *Fleet) Claim(ctx context.Context, c Claim) (Claimed, error) {
	if c.Member == "" && c.Shard == nil && c.Consumer == "" {
		return Claimed{DryRun: c.DryRun}, fault.Exitf(fault.Config, "name a member, a shard or a foreign consumer to claim from")
	}
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	group, pinned, err := f.changeable(ctx)
	if err != nil {
		return Claimed{DryRun: c.DryRun}, err
	}
	if c.Consumer != "" {
		return f.claimConsumer(ctx, group, c)
	}
	return f.claimShards(ctx, pinned, c)
}

// claimShards force-acquires shards from their owners and assigns them to other members.
func (f *Fleet) claimShards(ctx context.Context, pinned store.FleetSettings, c Claim) (Claimed, error) {
	r := Claimed{DryRun: c.DryRun}
	list, err := f.listShards(ctx, pinned)
	if err != nil {
		return r, err
	}
	there, err := f.heartbeats(ctx)
	if err != nil {
		return r, err
	}
	var chosen []protocol.Shard
	for _, s := range list {
		if c.Shard != nil && s.Shard == *c.Shard || c.Member != "" && isMember(s.Owner, c.Member) {
			chosen = append(chosen, s)
		}
	}
	switch {
	case len(chosen) > 0:
	case c.Member == "":
		return r, fmt.Errorf("no shard %d of %d; shards count from 0", *c.Shard, pinned.Shards)
	default:
		r.Note, err = f.explainNothingToMove(ctx, c.Member, list, there)
		return r, err
	}
	holds, err := f.holds().Holds(ctx)
	if err != nil {
		return r, f.explained(err)
	}
	to := successors(list, chosen, slices.DeleteFunc(there, func(m coordination.Member) bool { return holds.Drained(m.Name()) }))
	for i, s := range chosen {
		r.Shards = append(r.Shards, claimedShard{Shard: s.Shard, From: s.Owner, To: to[i]})
	}
	if c.DryRun {
		return r, nil
	}
	target := "member " + c.Member
	if c.Member == "" {
		target = fmt.Sprintf("shard %d", *c.Shard)
	} else {
		// A session stuck in a transaction would delay the move.
		sessions := store.NewSessions(f.pool, askTimeout)
		ended := make(map[string]bool)
		for _, s := range chosen {
			if ended[s.Owner] {
				continue
			}
			ended[s.Owner] = true
			n, err := sessions.End(ctx, s.Owner)
			if err != nil {
				return r, err
			}
			r.Sessions += n.Count
			if n.Left > 0 {
				r.Left = append(r.Left, fmt.Sprintf("%s of %s: %s", cli.Count(n.Left, "session"), s.Owner, n.Remedy()))
			}
		}
	}
	return r, f.shards().Move(ctx, chosen, to, f.by, target)
}

// explainNothingToMove returns why a member owns no shard: its shards were
// reassigned already, or it never had one. An unknown name is an error.
func (f *Fleet) explainNothingToMove(ctx context.Context, name string, list []protocol.Shard, there []coordination.Member) (string, error) {
	gone, err := f.lostMembers(ctx)
	if err != nil {
		return "", err
	}
	for member, a := range gone {
		if !isMember(member, name) {
			continue
		}
		now := make(map[string]int)
		for _, s := range list {
			if slices.Contains(a.Shards, s.Shard) {
				now[cmp.Or(s.Owner, "unassigned")]++
			}
		}
		var owners []string
		for _, o := range slices.Sorted(maps.Keys(now)) {
			owners = append(owners, fmt.Sprintf("%s has %d", o, now[o]))
		}
		return fmt.Sprintf("nothing to move: %s is %s; now %s", member, a, strings.Join(owners, ", ")), nil
	}
	for _, m := range there {
		if isMember(m.Name(), name) {
			return fmt.Sprintf("nothing to move: %s is present and owns no shard", m.Name()), nil
		}
	}
	return "", fmt.Errorf("no member is called %s; see processor members", name)
}

// isMember reports whether an owner is the one named, with or without incarnation.
func isMember(owner, name string) bool {
	return owner == name || protocol.Identity(owner) == name
}

// successors chooses for each shard the member with the fewest shards that is not
// its owner; "" if there is none.
func successors(list, chosen []protocol.Shard, there []coordination.Member) []string {
	count := make(map[string]int)
	for _, m := range there {
		if !m.Leaving && m.SinkDown == 0 {
			count[m.Name()] = 0
		}
	}
	for _, s := range list {
		if _, ok := count[s.Assigned]; ok {
			count[s.Assigned]++
		}
	}
	to := make([]string, len(chosen))
	names := slices.Sorted(maps.Keys(count))
	for i, s := range chosen {
		best := ""
		for _, m := range names {
			if m != s.Owner && (best == "" || count[m] < count[best]) {
				best = m
			}
		}
		if best != "" && best != s.Assigned {
			count[best]++
			to[i] = best
		}
	}
	return to
}

// claimConsumer moves the pending entries of a foreign consumer to the queues of their shards.
func (f *Fleet) claimConsumer(ctx context.Context, group *stream.Group, c Claim) (Claimed, error) {
	r := Claimed{DryRun: c.DryRun, Consumer: c.Consumer, Queues: map[string]int{}}
	consumers, err := group.Consumers(ctx)
	if err != nil {
		return r, err
	}
	i := slices.IndexFunc(consumers, func(x protocol.Consumer) bool { return x.Name == c.Consumer })
	switch {
	case i < 0:
		return r, fmt.Errorf("group %s has no consumer %q; processor doctor names the foreign ones", f.scope.Group, c.Consumer)
	case consumers[i].Shard >= 0:
		return r, fault.Exitf(fault.Config, "%s is the queue of a shard, not a foreign consumer; use --shard %d", c.Consumer, consumers[i].Shard)
	}
	held, err := group.Idle(ctx, c.Consumer, c.MinIdle)
	if err != nil || c.DryRun || held == 0 {
		r.Entries = held
		return r, err
	}
	// Recorded first: what follows may be interrupted.
	err = store.NewAudit(f.pool, askTimeout).Note(ctx, f.by, "consumer.claim", c.Consumer, held, map[string]any{"min_idle": c.MinIdle.String()})
	if err != nil {
		return r, err
	}
	shards := make(map[int]bool)
	for from, more := (telemetry.EntryID{}), true; more; {
		page, err := group.Claim(ctx, c.Consumer, c.MinIdle, from, claimPage)
		if err != nil {
			return r, errors.Join(fmt.Errorf("%d entries were moved; run it again for the rest", r.Entries), err)
		}
		from, more = page.Next, page.More
		r.Entries += page.Entries
		r.Lost += page.Gone
		for shard, n := range page.Shards {
			shards[shard] = true
			r.Queues[stream.Consumer(shard)] += n
		}
	}
	return r, group.Notify(ctx, slices.Sorted(maps.Keys(shards)))
}
