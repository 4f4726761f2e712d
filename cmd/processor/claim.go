package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
)

// claimPage is the number of entries of a foreign consumer moved in one step.
const claimPage = 500

// claimTimeout bounds a claim of a consumer with very many entries.
const claimTimeout = 10 * time.Minute

type claiming struct {
	member, consumer string
	shard            int
	minIdle          time.Duration
	dryRun           bool
}

// claimJSON is the output of processor claim.
type claimJSON struct {
	DryRun   bool           `json:"dry_run"`
	Note     string         `json:"note,omitempty"` // why there was nothing to move
	Shards   []claimedShard `json:"shards,omitempty"`
	Consumer string         `json:"consumer,omitempty"`
	Entries  int            `json:"entries"`
	Lost     int            `json:"lost"` // trimmed while pending, recorded in the ledger
	Queues   map[string]int `json:"queues,omitempty"`
	Sessions int            `json:"sessions_ended"`
}

type claimedShard struct {
	Shard int    `json:"shard"`
	From  string `json:"from"`
	To    string `json:"to"` // "" if the assignment is unchanged
}

func newClaimCommand() *cobra.Command {
	var c claiming
	cmd := &cobra.Command{
		Use:   "claim",
		Short: "Move the shards of a member, one shard, or a foreign consumer's entries",
		Long: `With --member or --shard: force-acquires shards from their owner immediately and
assigns them to other members. The owner can no longer commit for them. The fleet
does this automatically for members that are gone or stuck; a healthy owner gets
its share back.

With --consumer: moves the pending entries of a foreign consumer to the queues of
their shards. The owners read them within QUEUE_RESCAN.

Every change is recorded in processor.audit.`,
		Example: `  processor claim --member pod-3 --dry-run
  processor claim --shard 17
  processor claim --consumer old-service --min-idle 5m`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			named := 0
			for _, name := range []string{"member", "shard", "consumer"} {
				if cmd.Flags().Changed(name) {
					named++
				}
			}
			if named != 1 {
				return usageError(cmd, errors.New("specify one of --member, --shard and --consumer"))
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), claimTimeout)
			defer cancel()
			v, err := openFleetView(ctx)
			if err != nil {
				return err
			}
			defer v.close()
			if v.pins.Shards == 0 {
				return errNeverStarted
			}
			if err := v.checkDatabase(cmd.Context()); err != nil {
				return err
			}
			var r claimJSON
			if c.consumer != "" {
				r, err = v.claimConsumer(ctx, c)
			} else {
				r, err = v.claimShards(ctx, c)
			}
			if err != nil {
				return err
			}
			out := outputOf(cmd)
			return out.Result(r, func() error { return r.print(out) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.member, "member", "", "instance or member whose shards are moved")
	f.IntVar(&c.shard, "shard", -1, "shard to move")
	f.StringVar(&c.consumer, "consumer", "", "foreign consumer whose entries are moved")
	f.DurationVar(&c.minIdle, "min-idle", time.Minute, "with --consumer: minimum pending time of an entry")
	f.BoolVar(&c.dryRun, "dry-run", false, "only report what would move")
	return cmd
}

// claimShards force-acquires shards from their owners and assigns them to other members.
func (v *fleetView) claimShards(ctx context.Context, c claiming) (claimJSON, error) {
	r := claimJSON{DryRun: c.dryRun}
	list, err := v.list(ctx)
	if err != nil {
		return r, err
	}
	there, err := v.ring(ctx)
	if err != nil {
		return r, err
	}
	var chosen []protocol.Shard
	for _, s := range list {
		if s.Shard == c.shard || c.member != "" && isMember(s.Owner, c.member) {
			chosen = append(chosen, s)
		}
	}
	switch {
	case len(chosen) > 0:
	case c.member == "":
		return r, fmt.Errorf("no shard %d of %d; shards count from 0", c.shard, v.pins.Shards)
	default:
		r.Note, err = v.explainNothingToMove(ctx, c.member, list, there)
		return r, err
	}
	to := successors(list, chosen, there)
	for i, s := range chosen {
		r.Shards = append(r.Shards, claimedShard{Shard: s.Shard, From: s.Owner, To: to[i]})
	}
	if c.dryRun {
		return r, nil
	}
	target := "member " + c.member
	if c.member == "" {
		target = fmt.Sprintf("shard %d", c.shard)
	} else {
		// A session stuck in a transaction would delay the move.
		sessions := store.NewSessions(v.pool, askTimeout)
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
			r.Sessions += n
		}
	}
	return r, v.shards.Move(ctx, chosen, to, v.by, target)
}

// explainNothingToMove returns why a member owns no shard: its shards were
// reassigned already, or it never had one. An unknown name is an error.
func (v *fleetView) explainNothingToMove(ctx context.Context, name string, list []protocol.Shard, there []coordination.Member) (string, error) {
	gone, err := v.lostMembers(ctx)
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
	if owner == name {
		return true
	}
	dot := strings.LastIndexByte(owner, '.')
	return dot > 0 && owner[:dot] == name
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
func (v *fleetView) claimConsumer(ctx context.Context, c claiming) (claimJSON, error) {
	r := claimJSON{DryRun: c.dryRun, Consumer: c.consumer, Queues: map[string]int{}}
	consumers, err := v.group.Consumers(ctx)
	if err != nil {
		return r, err
	}
	i := slices.IndexFunc(consumers, func(x protocol.Consumer) bool { return x.Name == c.consumer })
	switch {
	case i < 0:
		return r, fmt.Errorf("group %s has no consumer %q; processor doctor names the foreign ones", v.scope.Group, c.consumer)
	case consumers[i].Shard >= 0:
		return r, exit(exitConfig, fmt.Errorf("%s is the queue of a shard, not a foreign consumer; use --shard %d", c.consumer, consumers[i].Shard))
	}
	held, err := v.group.Idle(ctx, c.consumer, c.minIdle)
	if err != nil || c.dryRun || held == 0 {
		r.Entries = held
		return r, err
	}
	// Recorded first: what follows may be interrupted.
	err = store.NewAudit(v.pool, askTimeout).Note(ctx, v.by, "consumer.claim", c.consumer, held, map[string]any{"min_idle": c.minIdle.String()})
	if err != nil {
		return r, err
	}
	shards := make(map[int]bool)
	for from, more := (telemetry.EntryID{}), true; more; {
		page, err := v.group.Claim(ctx, c.consumer, c.minIdle, from, claimPage)
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
	return r, v.group.Notify(ctx, slices.Sorted(maps.Keys(shards)))
}

func (r claimJSON) print(out *cli.Output) error {
	verb := "moved"
	if r.DryRun {
		verb = "would move"
	}
	if r.Consumer != "" {
		return out.Line("%s %s of %s to the queues of their shards; trimmed and lost: %s", verb, cli.Count(r.Entries, "entry"), r.Consumer, cli.Number(r.Lost))
	}
	if r.Note != "" {
		return out.Line("%s", r.Note)
	}
	t := cli.NewTable("SHARD", "FROM", "TO")
	for _, s := range r.Shards {
		from, to := s.From, s.To
		if from == "" {
			from = "nobody"
		}
		if to == "" {
			to = "its assigned member"
		}
		t.Row(s.Shard, from, to)
	}
	if err := out.Table(t); err != nil {
		return err
	}
	return out.Line("%s %s, ended %s", verb, cli.Count(len(r.Shards), "shard"), cli.Count(r.Sessions, "database session"))
}
