package operator

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
)

// waitTold is how long something waits before an operator is told: hand-overs are shorter.
const waitTold = 10 * time.Second

// waitState is what a state means, and what ends it.
type waitState struct{ level, means, remedy, section string }

// waitStates has each state in which something waits; docs/reference/waits.md has the same.
var waitStates = map[string]waitState{
	protocol.WaitUnassigned:     {LevelWarning, "no leader has assigned it", "start an instance", "ProcessorNoLeader"},
	protocol.WaitUnacquired:     {LevelWarning, "its new owner has not acquired it", "none, or find in the log of that instance what its acquisition waits for", sectionStalled},
	protocol.WaitUnreleased:     {LevelWarning, "its owner has not released it", "none: it is taken by force where another member could do better; else find in the log of its owner what it waits for", sectionStalled},
	protocol.WaitHeld:           {LevelWarning, "an operator paused it", "processor resume", sectionLag},
	protocol.WaitLocked:         {LevelError, "another session has its row locked", "end that session", sectionShard},
	protocol.WaitRefused:        {LevelError, "Postgres refuses its rows for a reason that is not theirs", "correct what the reason names", sectionRefuses},
	protocol.WaitRedisFull:      {LevelError, "a full Redis refuses its dead letters", "raise maxmemory, then trim the stream to less", sectionFull},
	protocol.WaitDLQRefused:     {LevelError, "Redis refuses its dead letters", "see that the key of REDIS_DLQ_STREAM is a stream, and that the user may write to it (deploy/security/redis.sh)", sectionDeadLetters},
	protocol.WaitQuarantined:    {LevelError, "one of its entries may kill processes, and is being found", "none: keep the panic dump", sectionDump},
	protocol.WaitDraining:       {LevelWarning, "what is in flight of it does not finish, and it is to be released", "find in the log of its owner why commits or acknowledgements fail", sectionPostgres},
	protocol.WaitKept:           {LevelError, "deferred entries are not retried to the end: rows of several devices are refused alike", "correct what the reason names", sectionRefuses},
	protocol.WaitDispatchHeld:   {LevelWarning, "dispatching is paused by an operator or a resize", "processor resume, or wait for the resize", sectionLag},
	protocol.WaitDispatchAhead:  {LevelWarning, "DISPATCH_AHEAD entries are dispatched and not finished", "see why shards do not advance; add instances if they do", sectionLag},
	protocol.WaitDispatchFull:   {LevelWarning, "the workers of its instance are full", "see why commits are slow; add instances, or raise MAX_IN_FLIGHT_RECORDS", sectionLag},
	protocol.WaitDispatchUnread: {LevelWarning, "the only instance has no shard yet, or reads what was dispatched before", "none, or see why it acquires no shard", sectionLag},
}

// Wait is why a shard, or the dispatcher, does not go on.
type Wait struct {
	protocol.Wait
	Means  string `json:"means"`
	Remedy string `json:"remedy"`
}

// newWait adds what the state of a wait means. One that only another version knows says so.
func newWait(w protocol.Wait) *Wait {
	s, known := waitStates[w.State]
	if !known {
		s.means, s.remedy = "unknown to this version", "run this command of the version that the fleet runs"
	}
	return &Wait{w, s.means, s.remedy}
}

// Text says the state, since when, and why.
func (w *Wait) Text(now time.Time) string {
	text := fmt.Sprintf("%s for %s: %s", w.State, max(0, now.Sub(w.Since)).Round(time.Second), w.Means)
	if w.Detail != "" {
		text += " (" + w.Detail + ")"
	}
	return text
}

// memberWaits returns what members say of their shards, by shard, and of themselves.
func memberWaits(members []coordination.Member) (ofShard map[int]protocol.Wait, others []protocol.Wait) {
	ofShard = make(map[int]protocol.Wait)
	for i := range members {
		for _, w := range members[i].Waits {
			known, has := ofShard[w.Shard]
			switch {
			case w.Shard < 0:
				others = append(others, w)
			case !has || w.Since.Before(known.Since):
				ofShard[w.Shard] = w
			}
		}
	}
	return ofShard, others
}

// ShardWaits returns which shards do not go on, by shard, in so far as their rows, the
// holds of operators and the heartbeats of members tell.
func ShardWaits(shards []protocol.Shard, holds protocol.Holds, members []coordination.Member) map[int]*Wait {
	told, _ := memberWaits(members)
	locks := RowLocks(members)
	waits := make(map[int]*Wait)
	for i := range shards {
		s := &shards[i]
		w := protocol.Wait{Shard: s.Shard, Since: s.Changed}
		hold := holds.Of(protocol.HoldShard, strconv.Itoa(s.Shard))
		said, isTold := told[s.Shard]
		switch lock := locks[s.Shard]; {
		case hold != nil:
			w.State, w.Since, w.Detail = protocol.WaitHeld, hold.Since, HoldText(*hold)
		case lock != nil:
			w.State, w.Since, w.Detail = protocol.WaitLocked, lock.Since, lock.String()
		case isTold:
			w = said
		case s.Changed.IsZero(): // known from heartbeats alone
			continue
		case s.Assigned == "":
			w.State = protocol.WaitUnassigned
		case s.Owner == "":
			w.State, w.Detail = protocol.WaitUnacquired, s.Assigned
		case s.Owner != s.Assigned:
			w.State, w.Detail = protocol.WaitUnreleased, s.Owner
		case s.MaxInFlight > 0:
			w.State, w.Since, w.Detail = protocol.WaitQuarantined, s.Since, fmt.Sprintf("%d crashes, %d at a time", s.CrashCount, s.MaxInFlight)
		default:
			continue
		}
		waits[s.Shard] = newWait(w)
		if lock := locks[s.Shard]; lock != nil && w.State == protocol.WaitLocked {
			waits[s.Shard].Remedy = lock.Remedy
		}
	}
	return waits
}

// waits adds what has not gone on for some time, those alike as one finding.
func (d *Diagnosis) waits(ofShard map[int]*Wait, others []protocol.Wait, now time.Time) {
	alike := make(map[string][]*Wait)
	add := func(w *Wait) {
		if now.Sub(w.Since) >= waitTold {
			alike[w.State] = append(alike[w.State], w)
		}
	}
	for _, w := range ofShard {
		add(w)
	}
	for _, w := range others {
		add(newWait(w))
	}
	for state, list := range alike {
		if state == protocol.WaitLocked { // each has a finding of its own, with who has the lock
			continue
		}
		slices.SortFunc(list, func(a, b *Wait) int { return cmp.Compare(a.Shard, b.Shard) })
		oldest := slices.MinFunc(list, func(a, b *Wait) int { return a.Since.Compare(b.Since) })
		who := "the dispatcher"
		switch {
		case list[0].Shard >= 0:
			numbers := make([]string, 0, 8)
			for _, w := range list[:min(len(list), 8)] {
				numbers = append(numbers, strconv.Itoa(w.Shard))
			}
			who = cli.Count(len(list), "shard") + " (" + strings.Join(numbers, ", ")
			if len(list) > len(numbers) {
				who += ", …"
			}
			who += ")"
		case !strings.HasPrefix(state, "dispatch"):
			who = cli.Count(len(list), "instance")
		}
		known := waitStates[state]
		remedy := oldest.Remedy
		if known.section != "" {
			remedy += "; " + see(known.section)
		}
		d.add(cmp.Or(known.level, LevelWarning), "waits", fmt.Sprintf("%s: %s, since %s", who, oldest.Text(now), oldest.Since.UTC().Format(time.RFC3339)), remedy).Count = len(list)
	}
}

// hot adds the devices that cost a member much of its work.
func (d *Diagnosis) hot(members []coordination.Member) {
	for i := range members {
		for _, h := range members[i].Hot {
			d.add(LevelWarning, "hot device", members[i].Name()+": "+HotText(h), "see why it sends that much (processor trace); the shards of its instance move to others as far as that helps, its own stays whole")
		}
	}
}

// examineWaits looks at what the tables and the heartbeats tell of waits.
func (d *Diagnosis) examineWaits(ctx context.Context, f *Fleet, shards int) error {
	if shards == 0 || f.client == nil {
		return nil
	}
	members, err := f.heartbeats(ctx)
	if err != nil {
		return err
	}
	list, err := f.listShards(ctx, store.FleetSettings{Shards: shards})
	if err != nil {
		return err
	}
	holds, err := f.holds().Holds(ctx)
	if err != nil {
		return err
	}
	d.hot(members)
	_, others := memberWaits(members)
	d.waits(ShardWaits(list, holds, members), others, time.Now())
	return nil
}
