package operator

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/history"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
)

// RedisView is what Redis knows of a fleet at one moment.
type RedisView struct {
	Info        stream.Info
	Backlog     protocol.Backlog // without deferred entries
	Members     []coordination.Member
	DeadLetters int64
	TimeToTrim  *time.Duration // until trimming reaches the oldest entry, if that stays; nil is unknown
}

// RedisView asks Redis alone. shards is the pinned number of shards, or one above
// it, since that is in Postgres.
func (f *Fleet) RedisView(ctx context.Context, shards int) (v RedisView, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	group, err := f.redis(ctx, shards)
	if err != nil {
		return v, err
	}
	if v.Info, err = group.Info(ctx); err != nil {
		return v, err
	}
	if v.Backlog, err = group.BacklogOf(ctx, v.Info); err != nil {
		return v, err
	}
	if margin, known := v.Info.TrimPoint().Margin(v.Backlog.Oldest); known {
		v.TimeToTrim = &margin
	}
	if v.Members, err = f.heartbeats(ctx); err != nil {
		return v, err
	}
	dead, err := stream.NewDeadLetters(f.client, f.where(1), f.cfg.Redis.DLQStream)
	if err != nil {
		return v, err
	}
	v.DeadLetters, err = dead.Length(ctx)
	return v, err
}

// History returns the last hour, which has a new sample every history.Every.
func (f *Fleet) History(ctx context.Context) (history.Window, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	group, err := f.redis(ctx, 1)
	if err != nil {
		return history.Window{}, err
	}
	texts, err := group.History(ctx)
	return history.Decode(texts, time.Now().Add(-history.Span)), err
}

// Queues returns the state of the queues; nothing if there is no group.
func (f *Fleet) Queues(ctx context.Context, shards int) (map[int]protocol.QueueState, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	group, err := f.redis(ctx, shards)
	if err != nil {
		return nil, err
	}
	return queuesOf(ctx, group)
}

// PostgresView is what Postgres knows of a fleet at one moment.
type PostgresView struct {
	Number    int // of shards; 0 if no fleet ever started
	Shards    []protocol.Shard
	Term      int64
	Leader    string // "" for none
	Deferred  int64
	Failing   Failing // of the deferred ones
	Lost      *int64  // nil if some losses are of unknown size
	Holds     protocol.Holds
	Incidents []Incident // open ones first, then those of the last hour
}

// viewIncidents bounds the incidents of a view.
const viewIncidents = 200

// PostgresView asks Postgres alone.
func (f *Fleet) PostgresView(ctx context.Context) (v PostgresView, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	pinned, err := f.postgres(ctx)
	if err != nil {
		return v, err
	}
	v.Number = pinned.Shards
	if v.Shards, err = f.listShards(ctx, pinned); err != nil {
		return v, f.explained(err)
	}
	if v.Term, v.Leader, err = store.NewLeader(f.pool, f.scope, f.by, askTimeout).CurrentTerm(ctx); err != nil {
		return v, f.explained(err)
	}
	if v.Deferred, err = store.NewDeferred(f.pool, f.scope, "", askTimeout).Count(ctx); err != nil {
		return v, f.explained(err)
	}
	if v.Failing, err = f.failing(ctx); err != nil {
		return v, f.explained(err)
	}
	lost, unknown, err := f.ledger().TotalLost(ctx)
	if err != nil {
		return v, f.explained(err)
	}
	if !unknown {
		v.Lost = &lost
	}
	if v.Holds, err = f.holds().Holds(ctx); err != nil {
		return v, f.explained(err)
	}
	_, incidents, err := f.ledger().Recent(ctx, history.Span, viewIncidents)
	for _, i := range incidents {
		v.Incidents = append(v.Incidents, Incident(i))
	}
	return v, f.explained(err)
}

// Guide is what to do about an incident.
type Guide struct {
	Level  string // LevelWarning or LevelError
	Page   string // of docs/runbook
	Remedy string
}

// GuideOf returns what to do about an incident of a kind.
func GuideOf(kind string) Guide {
	g := guideOf(kind)
	return Guide{Level: g.level, Page: g.section, Remedy: g.remedy}
}

// String says in words what happened.
func (i Incident) String() string {
	words := incidentWords[i.Kind]
	if words == "" {
		words = strings.ReplaceAll(i.Kind, "_", " ") + ": %s"
	}
	if !strings.Contains(words, "%s") {
		return words
	}
	if i.Subject == "" {
		return strings.TrimSuffix(strings.ReplaceAll(words, "%s", ""), ": ")
	}
	return strings.ReplaceAll(words, "%s", i.Subject)
}

// Remedy says what to do about this one.
func (i Incident) Remedy() string {
	remedy := guideOf(i.Kind).remedy
	if lost, err := lostMemberOf(i); i.Kind == protocol.SilentMember && err == nil && lost.PID > 0 {
		return fmt.Sprintf("kill -KILL %d on host %s if it still runs, and start another unless a supervisor does; its shards were reassigned; it is forgotten after an hour", lost.PID, lost.Host)
	}
	return remedy
}

// LostMembers returns the members that fell silent within the hour, by name.
func LostMembers(incidents []Incident) (map[string]LostMember, error) {
	gone := make(map[string]LostMember)
	for _, i := range incidents {
		if i.Kind != protocol.SilentMember || i.Closed != nil {
			continue
		}
		lost, err := lostMemberOf(i)
		if err != nil {
			return nil, err
		}
		gone[i.Subject] = lost
	}
	return gone, nil
}

func lostMemberOf(i Incident) (LostMember, error) {
	var noted struct { // as LostMember, with the names of the incident's detail
		Since   *time.Time
		Shards  []int
		Host    string
		PID     int
		Version string
	}
	if err := json.Unmarshal(i.Detail, &noted); err != nil {
		return LostMember{}, fmt.Errorf("read incident %s %s: %w", i.Kind, i.Subject, err)
	}
	return LostMember(noted), nil
}

// WaitingFor returns why no member works on a shard, or "".
func (v PostgresView) WaitingFor(s protocol.Shard) string {
	if h := v.Holds.Of(protocol.HoldShard, strconv.Itoa(s.Shard)); h != nil {
		return "Resume on the console's overview, or processor resume --shard " + h.Subject + ": " + HoldText(*h)
	}
	return waitingFor(s)
}

// As returns the same fleet with another operator for the audit.
func (f *Fleet) As(by string) *Fleet {
	other := *f
	other.by = by
	return &other
}

// Intend records what an operator is about to do and why. The outcome follows in a
// row of its own.
func (f *Fleet) Intend(ctx context.Context, action, target, reason string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if _, err := f.postgres(ctx); err != nil {
		return err
	}
	return f.explained(f.audit().Note(ctx, f.by, action, target, 0, map[string]any{"reason": reason, "stream": f.scope.Stream, "group": f.scope.Group}))
}

func (f *Fleet) audit() *store.Audit { return store.NewAudit(f.pool, askTimeout) }

// Live calls heard with what the members commit, coalesced, for history.ReadMoves, until ctx ends; Watch
// must be called every few seconds meanwhile.
func (f *Fleet) Live(ctx context.Context, heard func(text string)) error {
	group, err := f.redis(ctx, 1)
	if err != nil {
		return err
	}
	group.Live(ctx, heard)
	return ctx.Err()
}

// Watch asks the members to publish what they commit, for some seconds.
func (f *Fleet) Watch(ctx context.Context) error {
	group, err := stream.NewGroup(f.client, f.where(1))
	if err != nil {
		return err
	}
	return group.Watch(ctx)
}
