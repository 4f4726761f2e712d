package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
)

// fleetView is a fleet as commands see it: the stream with its members, and the
// database.
type fleetView struct {
	*fleetDB
	group  *stream.Group
	shards *store.Shards
	ring   func(ctx context.Context) ([]coordination.Member, error)
	close  func()
}

// askFleet queries the fleet with ask, and prints or encodes its result.
func askFleet[T interface{ print(out *cli.Output) error }](cmd *cobra.Command, ask func(ctx context.Context, v *fleetView) (T, error)) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
	defer cancel()
	v, err := openFleetView(ctx)
	if err != nil {
		return err
	}
	defer v.close()
	answer, err := ask(ctx, v)
	if err != nil {
		return err
	}
	out := outputOf(cmd)
	return out.Result(answer, func() error { return answer.print(out) })
}

// openFleetView connects to both servers. The number of shards is the pinned one.
func openFleetView(ctx context.Context) (*fleetView, error) {
	db, err := openFleetDB(ctx)
	if err != nil {
		return nil, err
	}
	where := stream.Config{
		URL: db.redis.URL.Reveal(), Stream: db.redis.Stream, Group: db.redis.Group,
		Shards: max(1, db.pins.Shards), Timeout: askTimeout, Name: "processor/operator",
	}
	client, err := stream.Connect(where)
	if err != nil {
		db.pool.Close()
		return nil, exit(exitConfig, err)
	}
	v := &fleetView{fleetDB: db, shards: store.NewShards(db.pool, db.scope, askTimeout), close: func() {
		_ = client.Close()
		db.pool.Close()
	}}
	if v.group, err = stream.NewGroup(client, where); err != nil {
		v.close()
		return nil, exit(exitConfig, err)
	}
	if err := redisAnswers(ctx, db.redis, v.group); err != nil {
		v.close()
		return nil, err
	}
	keys := coordination.Keys{Prefix: v.group.Names().Members(), Lock: v.group.Names().Lock()}
	v.ring = func(ctx context.Context) ([]coordination.Member, error) {
		return coordination.ReadMembers(ctx, client, keys)
	}
	return v, nil
}

// checkDatabase rejects a database that is not the one the fleet on this Redis
// works with: a change there and here would be of two fleets.
func (v *fleetView) checkDatabase(ctx context.Context) error {
	id, address, err := v.group.FleetDatabase(ctx)
	if err != nil || id == "" || id == v.pins.Database {
		return err
	}
	return exit(exitConfig, fmt.Errorf("the fleet on Redis at %s works with the database %s %s, and POSTGRES_URL leads to another one (%s): "+
		"correct POSTGRES_URL or REDIS_URL; nothing was changed", v.redis.URL.Addresses(), id, address, v.pins.Database))
}

// list returns the shards, by the pinned number.
func (v *fleetView) list(ctx context.Context) ([]protocol.Shard, error) {
	all, err := v.shards.List(ctx)
	return slices.DeleteFunc(all, func(s protocol.Shard) bool { return s.Shard >= v.pins.Shards }), err
}

// memberJSON is one member in the answer of processor members.
type memberJSON struct {
	Member      string      `json:"member"`
	Instance    string      `json:"instance"`
	State       string      `json:"state"` // working, leaving, without_postgres or gone
	Leads       bool        `json:"leads"`
	Shards      int         `json:"shards"`
	InFlight    *int        `json:"in_flight"` // null for one that is gone
	Host        string      `json:"host,omitempty"`
	PID         int         `json:"pid,omitempty"`
	Version     string      `json:"version,omitempty"`
	Started     *time.Time  `json:"started"`
	SinkSeconds float64     `json:"without_postgres_seconds"`
	Silent      *lostMember `json:"silent,omitempty"` // of one that is gone without a release, for an hour
}

// lostMember is what the fleet recorded when a member fell silent.
type lostMember struct {
	Since   *time.Time `json:"since"`             // null if no present member heard it
	Shards  []int      `json:"reassigned_shards"` // reassigned to other members
	Host    string     `json:"host,omitempty"`
	PID     int        `json:"pid,omitempty"`
	Version string     `json:"version,omitempty"`
}

// lostMembers returns the members that are gone without a release, by name.
func (v *fleetView) lostMembers(ctx context.Context) (map[string]lostMember, error) {
	_, incidents, err := store.NewLedger(v.pool, v.scope, "", askTimeout).Recent(ctx, 0, 100)
	if err != nil {
		return nil, err
	}
	gone := make(map[string]lostMember)
	for _, i := range incidents {
		if i.Kind != protocol.SilentMember || i.Closed != nil {
			continue
		}
		var noted struct { // as lostMember, with the names of the incident's detail
			Since   *time.Time
			Shards  []int
			Host    string
			PID     int
			Version string
		}
		if err := json.Unmarshal(i.Detail, &noted); err != nil {
			return nil, fmt.Errorf("read incident %s %s: %w", i.Kind, i.Subject, err)
		}
		gone[i.Subject] = lostMember(noted)
	}
	return gone, nil
}

// String describes the lost member.
func (a lostMember) String() string {
	text := fmt.Sprintf("silent, its %s reassigned", cli.CountWere(len(a.Shards), "shard"))
	if a.Since != nil {
		text = fmt.Sprintf("silent since %s (process %d on %s), its %s reassigned",
			a.Since.UTC().Format(time.RFC3339), a.PID, a.Host, cli.CountWere(len(a.Shards), "shard"))
	}
	return text
}

// The states of a member.
const (
	memberWorking = "working"
	memberLeaving = "leaving"
	memberCutOff  = "without_postgres"
	memberGone    = "gone"
)

type membersJSON struct {
	Stream  string       `json:"stream"`
	Group   string       `json:"group"`
	Term    int64        `json:"term"`
	Members []memberJSON `json:"members"`
}

func newMembersCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "members",
		Short: "List members, leader and shard ownership",
		Long: `Lists the instances with a heartbeat in Redis, and as gone those that own shards
without one, or whose shards were reassigned: these are listed for an hour, or until
the instance is back.`,
		Example: `  processor members
  processor members --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askFleet(cmd, func(ctx context.Context, v *fleetView) (membersJSON, error) { return v.members(ctx) })
		},
	}
}

func (v *fleetView) members(ctx context.Context) (membersJSON, error) {
	m := membersJSON{Stream: v.scope.Stream, Group: v.scope.Group, Members: []memberJSON{}}
	there, err := v.ring(ctx)
	if err != nil {
		return m, err
	}
	list, err := v.list(ctx)
	if err != nil {
		return m, err
	}
	term, leader, err := store.NewLeader(v.pool, v.scope, v.by, askTimeout).CurrentTerm(ctx)
	if err != nil {
		return m, err
	}
	m.Term = term
	owned := make(map[string]int)
	for _, s := range list {
		if s.Owner != "" {
			owned[s.Owner]++
		}
	}
	for _, t := range there {
		state := memberWorking
		switch {
		case t.Leaving:
			state = memberLeaving
		case t.SinkDown > 0:
			state = memberCutOff
		}
		m.Members = append(m.Members, memberJSON{
			Member: t.Name(), Instance: t.Instance, State: state, Leads: t.Name() == leader, Shards: owned[t.Name()],
			InFlight: &t.InFlight, Host: t.Host, PID: t.PID, Version: t.Version, Started: &t.Started, SinkSeconds: t.SinkDown.Seconds(),
		})
		delete(owned, t.Name())
	}
	gone, err := v.lostMembers(ctx)
	if err != nil {
		return m, err
	}
	for name := range gone {
		if slices.ContainsFunc(m.Members, func(x memberJSON) bool { return x.Member == name }) {
			delete(gone, name) // it is back
			continue
		}
		owned[name] += 0
	}
	for name, n := range owned {
		x := memberJSON{Member: name, State: memberGone, Shards: n, Leads: name == leader}
		if a, ok := gone[name]; ok {
			x.Silent, x.Host, x.PID, x.Version = &a, a.Host, a.PID, a.Version
		}
		m.Members = append(m.Members, x)
	}
	slices.SortFunc(m.Members, func(a, b memberJSON) int { return cmp.Compare(a.Member, b.Member) })
	return m, nil
}

func (m membersJSON) print(out *cli.Output) error {
	t := cli.NewTable("MEMBER", "STATE", "LEADS", "SHARDS", "IN FLIGHT", "HOST", "PID", "VERSION", "UP")
	for _, x := range m.Members {
		state := cli.Colored(x.State, cli.Green)
		switch x.State {
		case memberGone, memberCutOff:
			state.Color = cli.Red
		case memberLeaving:
			state.Color = cli.Yellow
		}
		leads := ""
		if x.Leads {
			leads = "yes"
		}
		if x.Started == nil {
			t.Row(x.Member, state, leads, x.Shards, "", x.Host, orBlank(x.PID), x.Version, "")
			continue
		}
		t.Row(x.Member, state, leads, x.Shards, cli.Number(*x.InFlight), x.Host, x.PID, x.Version, time.Since(*x.Started).Round(time.Second))
	}
	if len(m.Members) == 0 {
		return out.Line("no members in group %s on stream %s", m.Group, m.Stream)
	}
	if err := out.Table(t); err != nil {
		return err
	}
	for _, x := range m.Members {
		if x.Silent == nil {
			continue
		}
		if err := out.Line("%s: %s", out.Paint(cli.Red, x.Member), x.Silent); err != nil {
			return err
		}
	}
	return out.Line("term %d", m.Term)
}

func orBlank(n int) any {
	if n == 0 {
		return ""
	}
	return n
}
