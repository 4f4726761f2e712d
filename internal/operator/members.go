package operator

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
)

// Member is one instance, present or gone.
type Member struct {
	Member      string               `json:"member"`
	Instance    string               `json:"instance"`
	State       string               `json:"state"` // working, leaving, without_postgres or gone
	Leads       *bool                `json:"leads"` // null while Postgres does not tell
	Shards      int                  `json:"shards"`
	InFlight    *int                 `json:"in_flight"` // null for one that is gone
	Host        string               `json:"host,omitempty"`
	PID         int                  `json:"pid,omitempty"`
	Version     string               `json:"version,omitempty"`
	Started     *time.Time           `json:"started"`
	SinkSeconds float64              `json:"without_postgres_seconds"`
	Hot         []protocol.HotDevice `json:"hot_devices,omitempty"` // that cost it much, the hottest first
	Silent      *LostMember          `json:"silent,omitempty"`      // of one that is gone without a release, for an hour
}

// LostMember is what the fleet recorded when a member fell silent.
type LostMember struct {
	Since   *time.Time `json:"since"`             // null if no present member heard it
	Shards  []int      `json:"reassigned_shards"` // reassigned to other members
	Host    string     `json:"host,omitempty"`
	PID     int        `json:"pid,omitempty"`
	Version string     `json:"version,omitempty"`
}

// Members is who is in the fleet.
type Members struct {
	Stream  string   `json:"stream"`
	Group   string   `json:"group"`
	Term    *int64   `json:"term"` // null while Postgres does not tell
	Members []Member `json:"members"`

	// Unanswered says why only heartbeats are told; nil if Postgres answered.
	Unanswered error `json:"-"`
}

// lostMembers returns the members that are gone without a release, by name.
func (f *Fleet) lostMembers(ctx context.Context) (map[string]LostMember, error) {
	_, rows, err := f.ledger().Recent(ctx, 0, 100)
	if err != nil {
		return nil, err
	}
	incidents := make([]Incident, len(rows))
	for i, r := range rows {
		incidents[i] = Incident(r)
	}
	return LostMembers(incidents)
}

// String describes the lost member.
func (a LostMember) String() string {
	text := fmt.Sprintf("silent, its %s reassigned", cli.CountWere(len(a.Shards), "shard"))
	if a.Since != nil {
		text = fmt.Sprintf("silent since %s (process %d on %s), its %s reassigned",
			a.Since.UTC().Format(time.RFC3339), a.PID, a.Host, cli.CountWere(len(a.Shards), "shard"))
	}
	return text
}

// The states of a member.
const (
	MemberWorking = "working"
	MemberLeaving = "leaving"
	MemberCutOff  = "without_postgres"
	MemberGone    = "gone"
)

// Members returns the instances with a heartbeat, and as gone those that own
// shards without one or fell silent within the hour. It needs Redis; without
// Postgres it tells what the heartbeats say.
func (f *Fleet) Members(ctx context.Context) (Members, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*askTimeout)
	defer cancel()
	m := Members{Stream: f.scope.Stream, Group: f.scope.Group, Members: []Member{}}
	if _, err := f.redis(ctx, 1); err != nil {
		return m, err
	}
	there, err := f.heartbeats(ctx)
	if err != nil {
		return m, err
	}
	for _, t := range there {
		state := MemberWorking
		switch {
		case t.Leaving:
			state = MemberLeaving
		case t.SinkDown > 0:
			state = MemberCutOff
		}
		m.Members = append(m.Members, Member{
			Member: t.Name(), Instance: t.Instance, State: state, Shards: len(t.Shards),
			InFlight: &t.InFlight, Host: t.Host, PID: t.PID, Version: t.Version, Started: &t.Started, SinkSeconds: t.SinkDown.Seconds(), Hot: t.Hot,
		})
	}
	m.Unanswered = f.owners(ctx, &m)
	slices.SortFunc(m.Members, func(a, b Member) int { return cmp.Compare(a.Member, b.Member) })
	return m, nil
}

// HotText says which device costs a member how much.
func HotText(d protocol.HotDevice) string {
	return fmt.Sprintf("device %s on shard %d costs it %.0f %% of its work (%s a second)", d.Device, d.Shard, 100*d.Share, cli.Count(int(d.Rate+.5), "record"))
}

// owners adds what Postgres knows: who leads, who owns, and who is gone.
func (f *Fleet) owners(ctx context.Context, m *Members) error {
	pinned, err := f.postgres(ctx)
	if err != nil {
		return err
	}
	list, err := f.listShards(ctx, pinned)
	if err != nil {
		return f.explained(err)
	}
	term, leader, err := store.NewLeader(f.pool, f.scope, f.by, askTimeout).CurrentTerm(ctx)
	if err != nil {
		return f.explained(err)
	}
	gone, err := f.lostMembers(ctx)
	if err != nil {
		return f.explained(err)
	}
	m.Term = &term
	owned := make(map[string]int)
	for _, s := range list {
		if s.Owner != "" {
			owned[s.Owner]++
		}
	}
	for i := range m.Members {
		x := &m.Members[i]
		x.Leads, x.Shards = new(x.Member == leader), owned[x.Member]
		delete(owned, x.Member)
		delete(gone, x.Member) // it is back
	}
	for name := range gone {
		owned[name] += 0
	}
	for name, n := range owned {
		x := Member{Member: name, State: MemberGone, Shards: n, Leads: new(name == leader)}
		if a, ok := gone[name]; ok {
			x.Silent, x.Host, x.PID, x.Version = &a, a.Host, a.PID, a.Version
		}
		m.Members = append(m.Members, x)
	}
	return nil
}
