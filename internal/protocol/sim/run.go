package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"

	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Config determines a run completely: the same Config gives the same run.
type Config struct {
	Seed    uint64
	Mutant  Mutant
	Shards  int
	Devices int
	Members int // at the start
	Entries int
	Faults  []Fault // instead of those drawn from the seed
	Trace   bool
}

// Result is the outcome of a run.
type Result struct {
	Violation string // the first broken promise; "" if all were kept
	Config    Config // with the faults filled in
	Steps     int
	Commits   int
	Acks      int
	Unqueued  int         // acknowledgements of entries that were unqueued
	Limit     int         // entries lost within the known limit
	Reached   rare.Counts // rare branches
	Trace     []string
}

// world is the complete state of a run.
type world struct {
	cfg          Config
	rng          *rand.Rand
	now          int64
	seq          uint64
	events       events
	steps        int
	servers      [servers]server
	redis        *redis
	pg           *postgres
	procs        []*proc
	present      []*proc // by identity: the newest process
	incarnations int
	entries      []*entry
	published    int
	violation    string
	trace        []string
	commits      int
	acks         int
	limit        int
	reached      rare.Counts
	tokens       int
	loads        []float64 // of the shards, as leaders know them; nil where they are unknown
	holdAssign   int64     // before the next assignment takes effect
	onDispatch   func()    // called after the next dispatch
	waits        map[telemetry.EntryID]waiting
	unqueued     int // acknowledgements of entries that were unqueued
	redisPast    map[Fault]*redis
	pgPast       map[Fault]*tables
}

// identities is the maximum number of members.
const identities = 4

// FromSeed returns the run drawn from a seed.
func FromSeed(seed uint64, m Mutant) Config { return Themed(seed, m) }

// Themed returns the run drawn from a seed with only some kinds of faults; with
// all if none are named.
func Themed(seed uint64, m Mutant, theme ...Kind) Config {
	rng := rand.New(rand.NewPCG(seed, 1<<63))
	return Config{
		Seed: seed, Mutant: m,
		Shards: 2 + rng.IntN(3), Devices: 4 + rng.IntN(3), Members: 2 + rng.IntN(2), Entries: 40 + rng.IntN(50),
		Faults: schedule(rng, identities, theme),
	}
}

// shift changes the load of the shards from time to time, as leaders see it, so that
// shards also move for load.
func (w *world) shift(rng *rand.Rand) {
	w.loads = make([]float64, w.cfg.Shards)
	for i := range w.loads {
		w.loads[i] = 1000 * rng.Float64()
	}
	if w.now < faultsEnd {
		w.after(4000, nil, func() { w.shift(rng) })
	}
}

// loadsKnown is how long a leader sees members before it knows the load of the shards.
const loadsKnown = 2000

// outdated returns the members of an earlier deploy: in every fourth run that of each
// process which started before the middle of the faults.
func (w *world) outdated(members []string) []string {
	if w.cfg.Seed%4 != 1 || w.now < faultsEnd/2 {
		return nil
	}
	var names []string
	for _, p := range w.procs {
		if p.started < faultsEnd/2 && slices.Contains(members, p.id) {
			names = append(names, p.id)
		}
	}
	return names
}

// Run runs the model: first with faults, then without, until all is quiet.
func Run(cfg Config) Result {
	w := &world{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 1<<62)), present: make([]*proc, identities),
		redisPast: make(map[Fault]*redis), pgPast: make(map[Fault]*tables), reached: make(rare.Counts),
	}
	w.servers = [servers]server{{name: "Redis", timeout: 700}, {name: "Postgres", timeout: 1500}}
	w.redis = &redis{w: w}
	w.pg = &postgres{w: w, ended: make(map[string]int), t: newTables(cfg.Shards, cfg.Devices)}
	for _, f := range cfg.Faults {
		w.plan(f)
	}
	for i := range cfg.Members {
		w.after(w.rng.Int64N(200), nil, func() { w.launch(i, "m"+itoa(i)) })
	}
	// Where a row is locked, nothing may move that the lock could be blamed for.
	locks := slices.ContainsFunc(cfg.Faults, func(f Fault) bool { return f.Kind == LockRow })
	if cfg.Seed%2 == 1 && !locks {
		w.shift(rand.New(rand.NewPCG(cfg.Seed, 1<<61)))
	}
	w.publish()
	for w.violation == "" && w.step(faultsEnd) {
	}
	w.heal()
	const budget = 60000
	next := w.now
	for w.violation == "" {
		if w.now >= next {
			next = w.now + 50
			w.checkWaiting()
			if w.quiet() {
				w.checkEnd()
				break
			}
		}
		if !w.step(faultsEnd + budget) {
			w.overdue()
		}
	}
	return Result{
		Violation: w.violation, Config: cfg, Steps: w.steps, Commits: w.commits, Acks: w.acks, Unqueued: w.unqueued, Limit: w.limit, Reached: w.reached, Trace: w.trace,
	}
}

// publish adds entries at random moments: mostly newer ones, sometimes a late
// one or one that repeats a time.
func (w *world) publish() {
	clock := make([]int, w.cfg.Devices)
	w.published = w.cfg.Entries
	at := int64(0)
	for n := range w.cfg.Entries {
		if w.rng.IntN(3) > 0 { // bursts
			at += w.rng.Int64N(3 * faultsEnd / int64(w.cfg.Entries))
		}
		d := w.rng.IntN(w.cfg.Devices)
		clock[d] += 10
		ts := clock[d]
		if w.rng.IntN(5) == 0 {
			ts = max(0, ts-w.rng.IntN(6)*10-w.rng.IntN(2)*5)
		}
		e := &entry{number: n + 1, device: d, ts: ts, shard: w.shardOf(d)}
		w.after(min(at, faultsEnd-1), nil, func() { w.add(e) })
	}
}

func (w *world) add(e *entry) {
	if w.now < w.servers[redisServer].downTil {
		w.after(100, nil, func() { w.add(e) })
		return
	}
	e.number = len(w.entries) + 1
	w.entries = append(w.entries, e)
	w.redis.add(e)
	w.logf(nil, "entry %d added under ID %d: device %d at %d, shard %d", e.number, e.id.Seq, e.device, e.ts, e.shard)
}

func (w *world) shardOf(device int) int { return device % w.cfg.Shards }

// heal ends all faults except that frozen-forever processes stay frozen.
func (w *world) heal() {
	w.logf(nil, "FAULTS END")
	for i := range w.servers {
		w.servers[i].downTil, w.servers[i].slowTil = 0, 0
	}
	w.onDispatch = nil
	alive := 0
	for _, p := range w.procs {
		for i := range p.links {
			p.links[i] = link{knownRun: p.links[i].knownRun}
		}
		if !p.dead && !p.leaving && p.frozenUntil < forever {
			alive++
		}
	}
	if alive == 0 {
		w.launch(0, "m0")
	}
	// One more entry for every device provokes members that act on outdated
	// beliefs.
	for d := range w.cfg.Devices {
		w.published++
		w.after(int64(100+10*d), nil, func() { w.add(&entry{device: d, ts: 100000, shard: w.shardOf(d)}) })
	}
}

// alive returns the live and unfrozen process of an identity, if any.
func (w *world) alive(who int) *proc {
	if p := w.present[who]; p != nil && !p.dead && !p.leaving && p.frozenUntil <= w.now {
		return p
	}
	return nil
}

// launch starts an identity unless a process of it is alive and well.
func (w *world) launch(who int, identity string) {
	if w.alive(who) == nil {
		w.present[who] = w.start(identity)
	}
}

func (w *world) others(p *proc) int {
	n := 0
	for i := range w.present {
		if o := w.alive(i); o != nil && o != p {
			n++
		}
	}
	return n
}

// reach counts a rare branch of the protocol.
func (w *world) reach(b rare.Branch) { w.reached[b]++ }

func (w *world) logf(p *proc, format string, args ...any) {
	if !w.cfg.Trace {
		return
	}
	who := "-"
	if p != nil {
		who = p.id
	}
	w.trace = append(w.trace, fmt.Sprintf("%6d %-5s %s", w.now, who, fmt.Sprintf(format, args...)))
}

// newToken returns a token unique within the run; in production it is random.
func (w *world) newToken() string {
	w.tokens++
	return "t" + itoa(w.tokens)
}

func itoa(n int) string { return strconv.Itoa(n) }
