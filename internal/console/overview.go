package console

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/history"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/protocol"
)

// view is what both servers know, each with its age.
type view struct {
	Now      time.Time
	Redis    reading[operator.RedisView]
	Postgres reading[operator.PostgresView]
	History  history.Window // the last that is known
}

// view returns what both servers know, not older than fresh, once what else is asked
// meanwhile has ended too. Each ends within maxWait: together, so that a server that does
// not answer is waited for once.
func (c *Console) view(ctx context.Context, fresh time.Duration, also ...func()) view {
	v := view{Now: time.Now()}
	var asked sync.WaitGroup
	for _, ask := range also {
		asked.Go(ask)
	}
	asked.Go(func() { v.Redis = c.redis.within(ctx, fresh) })
	v.Postgres = c.postgres.within(ctx, fresh)
	asked.Wait()
	return v
}

// Silent lists what does not answer, for the notice on top of a page.
func (v view) Silent() []silence {
	var list []silence
	if v.Redis.Stale() {
		list = append(list, silence{"Redis", v.Redis.Err, v.Redis.At, "ProcessorRedisErrors"})
	}
	if v.Postgres.Stale() {
		list = append(list, silence{"Postgres", v.Postgres.Err, v.Postgres.At, "ProcessorCommitErrors"})
	}
	return list
}

// silence is a server that does not answer.
type silence struct {
	Server string
	Err    error
	Since  time.Time // of its last answer; zero for none
	Page   string
}

// deferred returns the entries that wait for another attempt.
func (v view) deferred() (int64, bool) {
	return v.Postgres.Value.Deferred, v.Postgres.Known()
}

// Backlog returns lag, pending and deferred together; nil is unknown.
func (v view) Backlog() *int64 {
	deferred, known := v.deferred()
	if b := v.Redis.Value.Backlog; v.Redis.Known() && known && b.LagKnown {
		n := b.Lag + b.Pending + deferred
		return &n
	}
	return nil
}

// Lag, Pending, Deferred, Lost and Letters are nil while they are unknown.
func (v view) Lag() *int64 {
	if b := v.Redis.Value.Backlog; v.Redis.Known() && b.LagKnown {
		return &b.Lag
	}
	return nil
}

// Pending returns the entries on queues.
func (v view) Pending() *int64 { return known(v.Redis, v.Redis.Value.Backlog.Pending) }

// Deferred returns the entries that wait for another attempt.
func (v view) Deferred() *int64 { return known(v.Postgres, v.Postgres.Value.Deferred) }

// Letters returns the dead letters.
func (v view) Letters() *int64 { return known(v.Redis, v.Redis.Value.DeadLetters) }

// Lost returns the entries in the ledger.
func (v view) Lost() *int64 { return v.Postgres.Value.Lost }

func known[T, V any](r reading[T], v V) *V {
	if !r.Known() {
		return nil
	}
	return &v
}

// Age returns the age of the oldest entry of the backlog: nil is unknown, "none"
// is an empty backlog.
func (v view) Age() string {
	b := v.Redis.Value.Backlog
	switch {
	case !v.Redis.Known() || !b.OldestKnown:
		return unknown
	case b.Oldest.IsZero():
		return "none"
	}
	age, ahead := b.Oldest.Age(v.Redis.At)
	if ahead > 0 {
		return unknown + ": " + operator.AheadText(ahead)
	}
	return seconds(age)
}

// Incidents returns the open ones.
func (v view) Incidents() []operator.Incident {
	var open []operator.Incident
	for _, i := range v.Postgres.Value.Incidents {
		if i.Closed == nil {
			open = append(open, i)
		}
	}
	return open
}

// memberRow is a line of the table of members.
type memberRow struct {
	coordination.Member
	Letter     string
	State      string // working, leaving, without Postgres, silent
	Level      string // ok, warn, bad
	Leads      bool
	Owned      int
	OwnedKnown bool
	Lost       *operator.LostMember // of one that fell silent within the hour
}

// Silence says since when a lost member is silent.
func (m memberRow) Silence() string {
	since := ""
	if m.Lost.Since != nil {
		since = " since " + m.Lost.Since.UTC().Format("15:04:05")
	}
	return "silent" + since + " (stopped or frozen)"
}

// Members returns the members with a heartbeat, and those that own shards without
// one.
func (v view) Members() []memberRow {
	owned := make(map[string]int)
	for _, s := range v.Postgres.Value.Shards {
		if s.Owner != "" {
			owned[s.Owner]++
		}
	}
	var rows []memberRow
	letters := v.letters()
	for _, m := range v.Redis.Value.Members {
		row := memberRow{Member: m, Letter: letters[m.Name()], State: "working", Level: "ok", Owned: owned[m.Name()], OwnedKnown: v.Postgres.Known()}
		switch {
		case m.Leaving:
			row.State, row.Level = "leaving", "warn"
		case m.SinkDown > 0:
			row.State, row.Level = "without Postgres", "bad"
		case v.Postgres.Value.Holds.Drained(m.Name()):
			row.State, row.Level = "drained", "idle"
		case m.Refusal != nil:
			row.State, row.Level = "paused: rows are rejected", "bad"
		}
		if !v.Postgres.Known() {
			row.Owned, row.OwnedKnown = len(m.Shards), true
		}
		row.Leads = v.Postgres.Value.Leader == m.Name()
		rows = append(rows, row)
		delete(owned, m.Name())
	}
	lost, err := operator.LostMembers(v.Postgres.Value.Incidents)
	if err != nil {
		lost = nil // a version that notes it otherwise
	}
	for name := range lost {
		if there := slices.ContainsFunc(v.Redis.Value.Members, func(m coordination.Member) bool { return m.Name() == name }); !there {
			owned[name] += 0
		}
	}
	for name, n := range owned {
		row := memberRow{Letter: letters[name], State: "silent", Level: "bad", Leads: v.Postgres.Value.Leader == name, Owned: n, OwnedKnown: true}
		if !v.Redis.Known() || v.Redis.Stale() {
			row.State, row.Level = unknown, "warn"
		}
		if l, ok := lost[name]; ok {
			row.Lost = &l
		}
		row.Instance, row.Incarnation = split(name)
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b memberRow) int { return cmp.Compare(a.Name(), b.Name()) })
	return rows
}

// Hot says which devices cost a member much of its work.
func (v view) Hot() []string {
	list := []string{}
	for _, m := range v.Redis.Value.Members {
		for _, d := range m.Hot {
			list = append(list, m.Name()+": "+operator.HotText(d))
		}
	}
	return list
}

func split(member string) (instance, incarnation string) {
	for i := len(member) - 1; i > 0; i-- {
		if member[i] == '.' {
			return member[:i], member[i+1:]
		}
	}
	return member, ""
}

// names returns all members that are or were there in the last hour, in order.
func (v view) names() []string {
	var names []string
	add := func(name string) {
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, o := range v.History.Owners {
		for _, name := range o.Members {
			add(name)
		}
	}
	for _, m := range v.Redis.Value.Members {
		add(m.Name())
	}
	for _, s := range v.Postgres.Value.Shards {
		add(s.Owner)
	}
	return names
}

// letters names the members by one letter each, in the order of their appearance,
// so that a letter stays with its member.
func (v view) letters() map[string]string {
	letters := make(map[string]string)
	for i, name := range v.names() {
		letters[name] = letter(i)
	}
	return letters
}

func letter(i int) string {
	if i < 26 {
		return string(rune('A' + i))
	}
	return string(rune('A'+i/26-1)) + string(rune('A'+i%26))
}

// Rate returns the entries finished per second, by the members' heartbeats.
func (v view) Rate() *float64 {
	if !v.Redis.Known() {
		return nil
	}
	sum := 0.0
	for _, m := range v.Redis.Value.Members {
		sum += m.Rate
	}
	return &sum
}

// charts returns a span up to a time; 0 is as long as is known.
func (v view) charts(chosen time.Duration, until time.Time) []chart {
	w := v.History
	in, out := w.Rates()
	size, age := w.Backlogs()
	marks := w.Marks()
	for _, i := range v.Postgres.Value.Incidents {
		marks = append(marks, history.Mark{At: i.Opened.UnixMilli(), Kind: history.Incident, Text: i.Kind + " " + i.Subject})
	}
	span := spanOf(chosen, &w, until)
	return []chart{
		{Title: "Entries per second", Unit: "/s", Until: until, Span: span, Marks: marks, Curves: []curve{{"in", "in", in}, {"finished", "out", out}}},
		{Title: "Backlog", Unit: "entries", Until: until, Span: span, Marks: marks, Curves: []curve{{"backlog", "size", size}}},
		{Title: "Age of the oldest", Unit: "s", Until: until, Span: span, Marks: marks, Curves: []curve{{"age", "age", age}}},
	}
}

// verdict is the one sentence on top.
type verdict struct {
	Level string // ok, warn, bad
	What  string
	Do    string // "" when there is nothing to do
	Page  string // of the runbook
	Link  string // where one acts, below the root of the console, and what is there; "" for none
	There string
}

func verdictOf(level, what, do, page string) verdict {
	return verdict{Level: level, What: what, Do: do, Page: page}
}

// pageOf returns where one acts on an incident, below the root of the console, and what is there.
func pageOf(i operator.Incident) (address, there string) {
	switch i.Kind {
	case protocol.SilentMember, protocol.StalledMember:
		return "#members", "members"
	case protocol.StalledShard, protocol.QuarantinedShard:
		return "shards/", "shards"
	case protocol.DeadLettersAlike:
		return "dead-letters/?" + url.Values{"fingerprint": {i.Subject}}.Encode(), "these dead letters"
	case protocol.GroupLost, protocol.RedisLost, protocol.RedisFailedOver:
		return "incidents/#ledger", "ledger of losses"
	}
	return "incidents/?open=yes", "its detail"
}

// maxVerdicts bounds what is listed beside the verdict.
const maxVerdicts = 20

// Others lists what else is open, beside the verdict.
func (v view) Others() []verdict {
	list := v.incidentVerdicts()
	if f := v.Postgres.Value.Failing.String(); f != "" {
		list = append(list, failingVerdict(f))
	}
	first := v.Verdict()
	list = slices.DeleteFunc(list, func(x verdict) bool { return x == first })
	return list[:min(len(list), maxVerdicts)]
}

func failingVerdict(text string) verdict {
	return verdict{"warn", text, "see what is wrong with them: the sender, or this version", "ProcessorDeadLetters", "dead-letters/#deferred-list", "these entries"}
}

// incidentVerdicts lists the open incidents, errors first.
func (v view) incidentVerdicts() (list []verdict) {
	for _, level := range []string{operator.LevelError, operator.LevelWarning} {
		for _, i := range v.Incidents() {
			if n := v.Letters(); i.Kind == protocol.DeadLettersAlike && n != nil && *n == 0 {
				continue // all were replayed or dropped; the leader closes it soon
			}
			if g := operator.GuideOf(i.Kind); g.Level == level {
				class := "bad"
				if level == operator.LevelWarning {
					class = "warn"
				}
				address, there := pageOf(i)
				list = append(list, verdict{class, i.String(), i.Remedy(), g.Page, address, there})
			}
		}
	}
	return list
}

// Verdict says how the fleet is, or the one thing to do.
func (v view) Verdict() verdict {
	for _, s := range v.Silent() {
		if s.Since.IsZero() || v.Now.Sub(s.Since) > 3*time.Second {
			return verdictOf("bad", s.Server+" does not answer this instance", "find out whether it runs and is reachable; nothing is lost meanwhile", s.Page)
		}
	}
	redis, postgres := v.Redis.Value, v.Postgres.Value
	if !v.Redis.Known() || !v.Postgres.Known() {
		return verdictOf("warn", "not known yet", "", "")
	}
	working := slices.ContainsFunc(redis.Members, func(m coordination.Member) bool { return !m.Leaving })
	if !working {
		return verdictOf("bad", "no instance is at work", "start one, and find out why the others ended", "ProcessorDown")
	}
	if list := v.incidentVerdicts(); len(list) > 0 {
		return list[0]
	}
	if h := postgres.Holds.Of(protocol.HoldFleet, ""); h != nil {
		return verdictOf("warn", operator.HoldText(*h), "when the reason is gone: Resume on the console's overview, under Act on the fleet, or processor resume; the stream keeps what arrives until it is trimmed", "ProcessorBehind")
	}
	waiting := 0
	for _, s := range postgres.Shards {
		if postgres.WaitingFor(s) != "" {
			waiting++
		}
	}
	if waiting > 0 {
		return verdictOf("warn", fmt.Sprintf("%d of %d shards wait for an owner", waiting, postgres.Number), "a hand-over takes seconds; look at the shards if it takes longer", "ProcessorDown")
	}
	if f := postgres.Failing.String(); f != "" {
		return failingVerdict(f)
	}
	if b := redis.Backlog; b.OldestKnown && !b.Oldest.IsZero() && v.Redis.At.Sub(b.Oldest.Time()) > behind {
		return verdictOf("warn", "the backlog is "+v.Age()+" old", "see whether it shrinks; add instances if it grows", "ProcessorBehind")
	}
	if _, ahead := redis.Info.Last.Age(v.Redis.At); ahead > 0 {
		return verdictOf("warn", operator.AheadText(ahead), "ages are unknown: synchronise the clocks of Redis and of every client that gives IDs", "ProcessorBehind")
	}
	if !redis.Info.Exists || redis.Info.Added == 0 {
		return verdictOf("warn", "nothing has ever arrived in the stream", "check REDIS_TELEMETRY_STREAM and whether tcp-ingestion runs", "ProcessorNothingArrives")
	}
	return verdictOf("ok", "healthy", "", "")
}

// behind is the age of the backlog at which the fleet counts as behind.
const behind = 30 * time.Second

func about(subject string) string {
	if subject == "" {
		return ""
	}
	return ": " + subject
}

// overviewData is what the first page shows.
type overviewData struct {
	view
	Ranges ranges
	Charts []chart
	Actor  actor
	Of     string // the stream that actions are on, where there are several
}

// instance is what a drain names: it outlives its members.
type instance struct {
	Name    string
	Drained bool
}

// Instances returns those with a heartbeat and those that are drained, by name.
func (d overviewData) Instances() []instance {
	drained := make(map[string]bool)
	for _, h := range d.Postgres.Value.Holds {
		if h.Kind == protocol.HoldMember {
			drained[h.Subject] = true
		}
	}
	for _, m := range d.Redis.Value.Members {
		drained[m.Instance] = drained[m.Instance] || d.Postgres.Value.Holds.Drained(m.Name())
	}
	var list []instance
	for _, name := range slices.Sorted(maps.Keys(drained)) {
		list = append(list, instance{name, drained[name]})
	}
	return list
}

// Dispatcher returns the member that dispatches, "" if it is unknown.
func (d overviewData) Dispatcher() string {
	for _, m := range d.Redis.Value.Members {
		if m.Dispatches {
			return m.Instance
		}
	}
	return ""
}

func (c *Console) overview(ctx context.Context, r *http.Request) (any, error) {
	var past reading[history.Window]
	v := c.view(ctx, freshness, func() { past = c.past(ctx) })
	v.History = past.Value
	chosen := rangesOf(r, "")
	of := ""
	if len(c.beside) > 1 {
		of = c.stream.Stream
	}
	return overviewData{view: v, Of: of, Ranges: chosen, Charts: c.draw(v, chosen.Chosen, past.At), Actor: c.actor(r)}, nil
}

// past returns the last hour. It is asked for once the next sample is due, by this clock.
func (c *Console) past(ctx context.Context) reading[history.Window] {
	known := c.history.peek()
	if n := len(known.Value.Samples); n > 0 && !known.Stale() && time.Since(known.At) < history.Every &&
		time.Since(known.Value.Samples[n-1].Time()) < history.Every {
		return known
	}
	return c.history.get(ctx)
}

// draw returns the charts as of a time. They are drawn when there is something new, not
// whenever a page asks.
func (c *Console) draw(v view, span time.Duration, at time.Time) []chart {
	var last int64
	if n := len(v.History.Samples); n > 0 {
		last = v.History.Samples[n-1].At
	}
	open := make([]int64, 0, len(v.Postgres.Value.Incidents))
	for _, i := range v.Postgres.Value.Incidents {
		open = append(open, i.Opened.UnixMilli())
	}
	key := fmt.Sprint(last, at.Truncate(2*history.Every).Unix(), open)
	c.drawing.Lock()
	defer c.drawing.Unlock()
	if c.drawnOf != key {
		c.drawnOf, c.drawn = key, make(map[time.Duration][]chart)
	}
	charts, there := c.drawn[span]
	if !there {
		if at.IsZero() {
			at = v.Now
		}
		charts = v.charts(span, at)
		for i := range charts {
			charts[i].svg = charts[i].draw()
		}
		c.drawn[span] = charts
	}
	return charts
}

// shardRow is a line of the table of shards.
type shardRow struct {
	protocol.Shard
	Letter  string
	Class   string // colour of the owner
	Pending *int64
	Oldest  time.Time // of its queue; zero if it is empty
	State   string
	Level   string
	Waits   string // "" while it is at work
	Heat    int    // 0 to 4: its part of the load
	Line    []segment
}

// segment is a piece of the timeline, in percent of the last hour.
type segment struct {
	X, Width      float64
	Class, Letter string
	Title         string
}

// shardsData is what the page of shards shows.
type shardsData struct {
	view
	Rows    []shardRow
	Legend  []legend
	Waiting int
	Ranges  ranges
	Span    time.Duration
}

// legend names a member.
type legend struct{ Letter, Class, Name string }

// ownerColors is the number of colours; letters tell members apart beyond.
const ownerColors = 8

func colorOf(i int) string { return fmt.Sprintf("o%d", i%ownerColors) }

func (c *Console) shards(ctx context.Context, r *http.Request) (any, error) {
	var past reading[history.Window]
	var queues reading[map[int]protocol.QueueState]
	v := c.view(ctx, freshness, func() { past = c.past(ctx) }, func() { queues = c.queues.get(ctx) })
	v.History = past.Value
	chosen := rangesOf(r, "shards/")
	d := shardsData{view: v, Ranges: chosen, Span: spanOf(chosen.Chosen, &v.History, v.Now)}
	names := v.names()
	for i, name := range names {
		d.Legend = append(d.Legend, legend{letter(i), colorOf(i), name})
	}
	list := v.Postgres.Value.Shards
	if !v.Postgres.Known() {
		list = v.heldShards()
	}
	lines := v.History.Timeline(len(list), v.Now)
	most := int64(1)
	for _, q := range queues.Value {
		most = max(most, q.Pending)
	}
	locks := operator.RowLocks(v.Redis.Value.Members)
	waits := operator.ShardWaits(list, v.Postgres.Value.Holds, v.Redis.Value.Members)
	for i, s := range list {
		row := shardRow{Shard: s, State: "at work", Level: "ok"}
		if at := slices.Index(names, s.Owner); at >= 0 {
			row.Letter, row.Class = letter(at), colorOf(at)
		}
		if queues.Known() && !queues.Stale() { // what is unknown, or of an earlier time, is no 0
			q := queues.Value[s.Shard]
			row.Pending = &q.Pending
			if !q.Oldest.IsZero() {
				row.Oldest = q.Oldest.Time()
			}
			if q.Pending > 0 && most >= heatFrom {
				row.Heat = int(1 + 3*q.Pending/most)
			}
		}
		if v.Postgres.Known() {
			row.Waits = v.Postgres.Value.WaitingFor(s)
		}
		switch {
		case v.Postgres.Value.Holds.Of(protocol.HoldShard, fmt.Sprint(s.Shard)) != nil:
			row.State, row.Level = "paused", "idle"
		case row.Waits != "":
			row.State, row.Level = "waits", "warn"
			d.Waiting++
		case s.MaxInFlight > 0:
			row.State, row.Level, row.Waits = "quarantined", "bad", fmt.Sprintf("the entry that crashed its owner %d times; %d at a time", s.CrashCount, s.MaxInFlight)
		}
		for _, inc := range v.Incidents() {
			if inc.Kind == protocol.StalledShard && inc.Subject == fmt.Sprint(s.Shard) {
				row.State, row.Level, row.Waits = "stalled", "bad", "whatever blocks its commits; see the incident"
			}
		}
		if w := waits[s.Shard]; w != nil && row.State == "at work" {
			row.State, row.Level, row.Waits = w.State, "warn", w.Text(v.Now)+"; "+w.Remedy
			d.Waiting++
		}
		if l := locks[s.Shard]; l != nil {
			row.State, row.Level, row.Waits = "locked", "bad", fmt.Sprintf("for %s, it %s; %s", v.Now.Sub(l.Since).Round(time.Second), l, l.Remedy)
		}
		row.Line = segments(lines[i], v.Now, d.Span, names)
		d.Rows = append(d.Rows, row)
	}
	return d, nil
}

// heatFrom is the longest queue below which all shards count as cool.
const heatFrom = 100

// heldShards returns the shards by the heartbeats, while Postgres has told nothing.
func (v view) heldShards() []protocol.Shard {
	var list []protocol.Shard
	for _, m := range v.Redis.Value.Members {
		for _, s := range m.Shards {
			list = append(list, protocol.Shard{Shard: s, Owner: m.Name()})
		}
	}
	slices.SortFunc(list, func(a, b protocol.Shard) int { return a.Shard - b.Shard })
	return list
}

func segments(line []history.Ownership, now time.Time, shown time.Duration, names []string) []segment {
	var out []segment
	span := float64(shown.Milliseconds())
	from := now.Add(-shown).UnixMilli()
	for _, o := range line {
		x := max(0, float64(o.From-from)/span*100)
		w := float64(o.To-from)/span*100 - x
		if w <= 0 {
			continue
		}
		s := segment{X: x, Width: max(w, .15), Class: "wait", Title: "waited"}
		if i := slices.Index(names, o.Owner); i >= 0 {
			s.Class, s.Letter, s.Title = colorOf(i), letter(i), o.Owner
		}
		s.Title += fmt.Sprintf(" from %s to %s", time.UnixMilli(o.From).UTC().Format("15:04:05"), time.UnixMilli(o.To).UTC().Format("15:04:05"))
		if w < 3 {
			s.Letter = ""
		}
		out = append(out, s)
	}
	return out
}

// allPages lists the screens.
func (c *Console) allPages() map[string]*page {
	pages := make(map[string]*page)
	for _, p := range []*page{
		{path: "", title: "Overview", nav: "overview", every: time.Second, reads: []string{"span"}, names: []string{"notice", "verdict", "figures", "charts", "members", "incidents-open", "fleet-actions"}, still: []string{"fleet-actions"}, data: c.overview},
		{path: "shards/", title: "Shards", nav: "shards", every: time.Second, reads: []string{"span"}, names: []string{"notice", "shards"}, data: c.shards},
		{path: "dead-letters/", title: "Dead letters", nav: "dead", every: 2 * time.Second, reads: []string{"class", "device", "fingerprint", "text", "ids", "after"}, names: []string{"notice", "letter-filter", "deferred-list", "letter-groups", "letter-list", "letter-actions"}, still: []string{"letter-filter", "letter-actions"}, data: c.deadLetters},
		{path: "dead-letters/letter/", title: "Dead letter", nav: "dead", every: 2 * time.Second, reads: []string{"id"}, names: []string{"notice", "letter", "letter-edit"}, still: []string{"letter-edit"}, data: c.deadLetter},
		{path: "dead-letters/deferred/", title: "Entry that is tried again", nav: "dead", every: 2 * time.Second, reads: []string{"entry"}, names: []string{"notice", "deferred-entry"}, data: c.deferredEntry},
		{path: "dead-letters/archive/", title: "Archived dead letters", nav: "dead", every: 5 * time.Second, reads: []string{"class", "device", "fingerprint", "open", "before"}, names: []string{"notice", "archive", "archive-actions"}, still: []string{"archive-actions"}, data: c.archive},
		{path: "devices/", title: "Devices", nav: "devices", every: 2 * time.Second, reads: []string{"device", "prefix", "from", "to"}, names: []string{"notice", "device-search", "device-facts", "device-map", "device-tables", "device-actions"}, still: []string{"device-search", "device-map", "device-actions"}, data: c.device},
		{path: "devices/crossing/", title: "Crossing", nav: "devices", every: 5 * time.Second, reads: []string{"device", "fence", "at"}, names: []string{"notice", "crossing"}, data: c.crossing},
		{path: "map/", title: "Live map", nav: "map", every: history.LiveEvery, names: []string{"notice", "live-map"}, still: []string{"live-map"}, data: c.liveMap, follow: c.follow},
		{path: "incidents/", title: "Incidents and ledger", nav: "incidents", every: 2 * time.Second, reads: []string{"open", "before", "lost"}, names: []string{"notice", "incident-list", "ledger"}, data: c.incidents},
		{path: "requests/", title: "Requests and audit", nav: "requests", every: 2 * time.Second, reads: []string{"device", "before", "audit"}, names: []string{"notice", "request-list", "audit-list"}, data: c.requests},
		{path: "settings/", title: "Settings", nav: "settings", every: 5 * time.Second, names: []string{"notice", "setting-list", "pinned-list"}, data: c.settings},
		{path: "jobs/", title: "Action", every: 500 * time.Millisecond, reads: []string{"id"}, names: []string{"job", "job-cancel"}, still: []string{"job-cancel"}, data: c.showJob},
	} {
		pages[p.path] = p
	}
	return pages
}
