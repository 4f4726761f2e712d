package scenarios

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/observer"
	"github.com/trmtracking/processor/loadtest/oracle"
	"github.com/trmtracking/processor/loadtest/testbed"
)

const (
	// dose is the share of entries that are no records.
	dose = .05
	// minRelativeRate is the minimum rate relative to that of a clean backlog.
	minRelativeRate = .6
	// deliveries is how often an entry that cannot be decoded is tried, the
	// service's default.
	deliveries = 3
)

func poison() Scenario {
	return Scenario{
		Name: "poison",
		About: "A backlog of which one entry in twenty is no record, in twelve ways, alternately with a clean one as large; one instance is killed " +
			"on the way. Then what can be fixed is fixed and everything sent again.",
		Bounds: "every bad entry is a dead letter of its class and nothing else is; at least 0.6 of the clean rate (the best of each counts); " +
			"what was fixed is stored, what was not a dead letter again",
		Plan:   Plan{Instances: 2, Devices: 500, Rate: 1000, Entries: 40_000, Rounds: 2, Duration: endless, Profile: profileIncidents},
		Breaks: true,
		env:    []string{"DLQ_RETRY_DELAYS=2s,4s"},
		run: func(ctx context.Context, r *run) error {
			if err := r.line.Stop(ctx); err != nil {
				return err
			}
			if err := r.compare(ctx); err != nil {
				return err
			}
			if err := r.checkDLQ(ctx); err != nil {
				return err
			}
			if err := r.line.StartAll(ctx, 0, r.plan.Instances); err != nil {
				return err
			}
			return r.repair(ctx)
		},
	}
}

// pace is at which rates a backlog was drained.
type pace struct {
	whole  float64 // from the first entry to the last, the take-over included
	before float64 // until one instance was killed
}

// compare drains clean and bad backlogs alternately.
func (r *run) compare(ctx context.Context) error {
	var clean, bad pace
	for range max(1, r.plan.Rounds) {
		for _, side := range []struct {
			name  string
			share float64
			best  *pace
		}{{"clean", 0, &clean}, {"poisoned", dose, &bad}} {
			p, err := r.drainKilled(ctx, side.share)
			if err != nil {
				return fmt.Errorf("drain a %s backlog: %w", side.name, err)
			}
			r.fact("backlog", "%s, one of %d killed: %s/s in all, %s/s before the kill", side.name, r.plan.Instances,
				cli.Thousands(int64(p.whole)), cli.Thousands(int64(p.before)))
			side.best.whole, side.best.before = max(side.best.whole, p.whole), max(side.best.before, p.before)
		}
	}
	r.rates = []float64{cli.Round(clean.whole, 0), cli.Round(bad.whole, 0), cli.Round(clean.before, 0), cli.Round(bad.before, 0)}
	r.fact("throughput", "%.2f of the clean rate in all, %.2f before the kill", bad.whole/clean.whole, bad.before/clean.before)
	// No slack: both sides had the same machine.
	r.check(bad.whole >= minRelativeRate*clean.whole, "throughput: %.2f of the clean rate, want at least %.2f", bad.whole/clean.whole, minRelativeRate)
	return nil
}

// drainKilled sends a backlog while no instance runs, lets all instances begin
// with it at once, and kills one of them when half of it is done.
func (r *run) drainKilled(ctx context.Context, share float64) (pace, error) {
	backlog, err := r.fillBacklog(ctx, share)
	if err != nil {
		return pace{}, err
	}
	// Nothing is dispatched while we hold the dispatch lease.
	release, err := r.holdDispatchLease(ctx)
	if err != nil {
		return pace{}, err
	}
	if err := r.line.StartAll(ctx, 0, r.plan.Instances); err != nil {
		return pace{}, err
	}
	if err := r.line.AwaitSettled(ctx, settleWithin); err != nil {
		return pace{}, err
	}
	if err := release(); err != nil {
		return pace{}, err
	}
	began := time.Now()
	killed, left, err := r.shrunk(ctx, backlog/2)
	if err != nil {
		return pace{}, err
	}
	if left == 0 {
		return pace{}, fmt.Errorf("a backlog of %d entries was done before an instance could be killed: take more (--entries)", backlog)
	}
	if err := r.kill(ctx, r.line.Current()[0], "one of all"); err != nil {
		return pace{}, err
	}
	done, _, err := r.shrunk(ctx, 0)
	if err != nil {
		return pace{}, err
	}
	p := pace{
		whole:  float64(backlog) / done.Sub(began).Seconds(),
		before: float64(backlog-left) / killed.Sub(began).Seconds(),
	}
	// What is deferred must not burden the next one.
	if _, err := r.finish(ctx); err != nil {
		return pace{}, err
	}
	return p, r.line.Stop(ctx)
}

// holdDispatchLease waits for the dispatch lease and keeps it.
func (r *run) holdDispatchLease(ctx context.Context) (release func() error, err error) {
	token := "loadtest " + rand.Text()
	err = testbed.Within(ctx, testbed.ReadyWithin, 50*time.Millisecond, func() error {
		turn, err := r.environment.Inspector.AcquireDispatchLease(ctx, "", token, time.Hour)
		if err == nil && !turn.Acquired {
			err = errors.New("a member dispatches")
		}
		return err
	})
	return func() error { return r.environment.Inspector.ReleaseDispatchLease(ctx, token) }, err
}

// fillBacklog sends a backlog of which a share is no records.
func (r *run) fillBacklog(ctx context.Context, share float64) (int64, error) {
	profile, err := r.plan.Fleet(r.cfg.Seed, r.fleets, r.plan.Duration)
	if err != nil {
		return 0, err
	}
	profile.Junk, profile.Limit = share, r.plan.Entries
	r.fleets++
	if r.sendingBegan.IsZero() {
		r.sendingBegan = time.Now()
	}
	before, _ := r.load.Sent()
	if err := r.load.Begin(ctx, profile, fleet.AtSpeed(0)); err != nil {
		return 0, err
	}
	if err := r.load.End(ctx, false); err != nil {
		return 0, err
	}
	sent, _ := r.load.Sent()
	return sent - before, nil
}

// shrunk waits until no more than so many entries are on the stream and not
// done, deferred ones not counted, and returns when and how many that was.
func (r *run) shrunk(ctx context.Context, most int64) (at time.Time, left int64, err error) {
	moved, least := time.Now(), int64(-1)
	err = testbed.Until(ctx, 5*time.Millisecond, func() error {
		outstanding, _ := r.environment.Backlog(ctx)
		if outstanding == nil {
			return errors.New("the backlog is unknown")
		}
		at, left = time.Now(), *outstanding
		if left <= most {
			return nil
		}
		if least < 0 || left < least {
			moved, least = at, left
		}
		if at.Sub(moved) > testbed.NoProgressLimit {
			return testbed.GiveUp(fmt.Errorf("%d entries in the backlog and nothing moves", left))
		}
		return fmt.Errorf("%d entries in the backlog", left)
	})
	return at, left, err
}

// failureClass is what became of the bad entries of one kind.
type failureClass struct {
	class     telemetry.Class
	sent      int
	dead      int // dead letters of this class, after the attempts due to it
	wrong     int // dead letters of another class, after other attempts, or though fixed
	edited    int // sent again, as records
	again     int // sent again as they were
	deadAgain int // of those
}

// countByClass counts the bad entries by kind, and the dead letters that none of them is.
func (r *run) countByClass(ctx context.Context) (kinds map[string]*failureClass, stray int, err error) {
	type patient struct {
		*failureClass
		class  telemetry.Class // "" for a record
		replay bool
	}
	kinds = make(map[string]*failureClass)
	patients := make(map[telemetry.EntryID]patient)
	sent, err := r.load.Open()
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, sent.Close()) }()
	err = sent.Scan(func(_ int64, s *fleet.Sent) error {
		if s.Junk == "" {
			return nil
		}
		a := kinds[s.Junk]
		if a == nil {
			a = &failureClass{class: s.Class}
			kinds[s.Junk] = a
		}
		patients[s.ID] = patient{a, s.Class, !s.ReplayOf.IsZero()}
		switch {
		case s.ReplayOf.IsZero():
			a.sent++
		case s.Class == "":
			a.edited++
		default:
			a.again++
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	for l, err := range r.environment.DLQReader.All(ctx) {
		if err != nil {
			return nil, 0, err
		}
		p, known := patients[l.Entry.ID]
		attempts := 1
		if l.Class == telemetry.ClassDecode {
			attempts = deliveries
		}
		switch {
		case !known:
			stray++
		case l.Class != p.class || l.Attempts != attempts:
			p.wrong++
		case p.replay:
			p.deadAgain++
		default:
			p.dead++
		}
	}
	return kinds, stray, nil
}

// checkDLQ lets the judge check what the backlogs left behind, and shows the
// dead letters by kind.
func (r *run) checkDLQ(ctx context.Context) error {
	kinds, stray, err := r.countByClass(ctx)
	if err != nil {
		return err
	}
	all := 0
	for _, name := range fleet.JunkKinds() {
		a := kinds[name]
		if a == nil {
			r.check(false, "%s: none was sent, take more entries", name)
			continue
		}
		all += a.dead
		r.fact(name, "%d sent, %d dead letters of class %s, %d others", a.sent, a.dead, a.class, a.wrong)
		r.check(a.dead == a.sent && a.wrong == 0, "%s: %d of %d are dead letters of class %s, %d others", name, a.dead, a.sent, a.class, a.wrong)
	}
	r.check(stray == 0, "%d dead letters are none of the bad entries", stray)
	report, err := r.verifyTables(ctx)
	if err != nil {
		return err
	}
	account := report.Account
	r.fact("account", "%s entries: %s stored, %s duplicates, %s dead letters", cli.Thousands(account.Entries),
		cli.Thousands(account.Stored), cli.Thousands(account.Duplicates), cli.Thousands(account.DeadLettered))
	r.check(report.Good() && int(account.DeadLettered) == all, "before the fixing: %+v, %v", account, report.Counts)
	return nil
}

// verifyTables lets the oracle check what is stored so far.
func (r *run) verifyTables(ctx context.Context) (_ *oracle.Report, err error) {
	sent, err := r.load.Open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, sent.Close()) }()
	o, err := oracle.New(sent)
	if err != nil {
		return nil, err
	}
	left, err := r.environment.Left(ctx)
	if err != nil {
		return nil, err
	}
	return o.Judge(oracle.Observed{
		Positions: r.environment.Positions(ctx), Pending: observer.Among(left.Pending), Dispatched: (*oracle.ID)(&left.Dispatched), DeadLetters: r.environment.Letters(ctx),
		Crossings: r.environment.Crossings(ctx), Rules: r.rules(),
	})
}

// repairs turn bad payloads back into what the device said, as an operator
// would with sed. Of the kinds that are missing nothing is left to fix.
func repairs() map[string][2]string {
	const attributes = `"attributes":{`
	return map[string][2]string{
		"wrong_type":       {`"latitude":"north","was":`, `"latitude":`},
		"missing_field":    {`"x":`, `"longitude":`},
		"unknown_sentinel": {attributes + `"78":{"__decimal":"1.5"},`, attributes},
		"latitude_range":   {`"latitude":91.5,"was":`, `"latitude":`},
		"priority_range":   {`"priority":7,"was":`, `"priority":`},
		"time_range":       {`"timestamp":"1901-12-13T20:45:52.207Z","was":`, `"timestamp":`},
		"device_mismatch":  {`"device_id":"9`, `"device_id":"`},
		"nul":              {attributes + `"note":"a\u0000b",`, attributes},
		"huge":             {attributes + `"note":"` + strings.Repeat("x", 1<<20) + `",`, attributes},
	}
}

// deadLetter is a line of processor dlq export, as far as it is fixed.
type deadLetter struct {
	ID       string `json:"id"`
	SourceID string `json:"source_id"`
	Fields   []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"fields"`
}

// payload returns where the line holds the payload; nil where it has none.
func (l *deadLetter) payload() *string {
	for i := range l.Fields {
		if l.Fields[i].Name == telemetry.FieldPayload {
			return &l.Fields[i].Value
		}
	}
	return nil
}

// repair fixes what can be fixed and sends all dead letters again, by the
// commands that operators have, and notes what has to become of them.
func (r *run) repair(ctx context.Context) error {
	exported, editedFile := filepath.Join(r.cfg.Dir, "letters.jsonl"), filepath.Join(r.cfg.Dir, "edited.jsonl")
	if _, err := r.dlq(ctx, "export", "--file", exported); err != nil {
		return err
	}
	again, err := r.editExported(exported, editedFile)
	if err != nil {
		return fmt.Errorf("fix dead letters: %w", err)
	}
	if _, err := r.dlq(ctx, "edit", "--from-file", editedFile, "--json"); err != nil {
		return err
	}
	began := time.Now()
	out, err := r.dlq(ctx, "retry", "--all", "--unchecked", "--rate", "5000", "--json")
	if err != nil {
		return err
	}
	var report []struct {
		SourceID string `json:"source_id"`
		Outcome  string `json:"outcome"`
		As       string `json:"replayed_as"`
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return fmt.Errorf("read what dlq retry says: %w", err)
	}
	r.check(len(report) == len(again), "%d dead letters were sent again, want %d", len(report), len(again))
	for _, line := range report {
		s := again[line.SourceID]
		if s == nil || line.Outcome != "replayed" {
			r.check(false, "retry of entry %s: %s", line.SourceID, line.Outcome)
			continue
		}
		if s.ID, err = telemetry.ParseEntryID(line.As); err != nil {
			return fmt.Errorf("read what dlq retry says: %w", err)
		}
		if err := r.load.Writer.Append(s); err != nil {
			return err
		}
	}
	r.load.Earlier.Add(int64(len(report)))
	if err := r.load.Writer.Flush(); err != nil {
		return err
	}
	if _, err := r.finish(ctx); err != nil {
		return err
	}
	r.fact("retry", "%d dead letters in %.1f s, until the last was done", len(report), time.Since(began).Seconds())
	kinds, stray, err := r.countByClass(ctx)
	if err != nil {
		return err
	}
	for _, name := range fleet.JunkKinds() {
		a := kinds[name]
		if a == nil {
			continue
		}
		r.fact(name, "%d fixed and sent again; %d sent again as they were, %d dead letters again", a.edited, a.again, a.deadAgain)
		r.check(a.dead == 0 && a.wrong == 0 && a.edited+a.again == a.sent && a.deadAgain == a.again,
			"%s after the fixing: %+v", name, *a)
	}
	r.check(stray == 0, "%d dead letters after the fixing are none of the bad entries", stray)
	return nil
}

// editExported writes fixed dead letters, and returns what each dead letter is to be
// sent again as, by source ID.
func (r *run) editExported(exported, editedFile string) (again map[string]*fleet.Sent, err error) {
	kinds, err := r.junk()
	if err != nil {
		return nil, err
	}
	in, err := os.Open(exported)
	if err != nil {
		return nil, fmt.Errorf("open the export: %w", err)
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.Create(editedFile)
	if err != nil {
		return nil, fmt.Errorf("make a file: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	again = make(map[string]*fleet.Sent)
	lines, write := json.NewDecoder(in), json.NewEncoder(out)
	cures := repairs()
	for {
		var l deadLetter
		if err := lines.Decode(&l); errors.Is(err, io.EOF) {
			return again, nil
		} else if err != nil {
			return nil, fmt.Errorf("read the export: %w", err)
		}
		was, ok := kinds[l.SourceID]
		if !ok {
			return nil, fmt.Errorf("entry %s was not sent", l.SourceID)
		}
		s := &fleet.Sent{ReplayOf: was.ID, Class: was.Class, Junk: was.Junk, Message: was.Message}
		again[l.SourceID] = s
		cure, curable := cures[was.Junk]
		if !curable {
			continue
		}
		p := l.payload()
		if p == nil {
			return nil, fmt.Errorf("entry %s, %s: no payload in the export", l.SourceID, was.Junk)
		}
		*p = strings.Replace(*p, cure[0], cure[1], 1)
		if s.Message, err = said(was.Message.DeviceID, *p); err != nil {
			return nil, fmt.Errorf("entry %s, %s: %w in %.200s", l.SourceID, was.Junk, err, *p)
		}
		s.Class = ""
		if err := write.Encode(&l); err != nil {
			return nil, fmt.Errorf("write an edited dead letter: %w", err)
		}
	}
}

// said returns the message in a payload of the fleet's junk that was fixed.
func said(device, payload string) (fleet.Message, error) {
	var p struct {
		Time       time.Time `json:"timestamp"`
		Latitude   float64   `json:"latitude"`
		Longitude  float64   `json:"longitude"`
		Altitude   float64   `json:"altitude"`
		Angle      float64   `json:"angle"`
		Speed      float64   `json:"speed"`
		Satellites int       `json:"satellites"`
		Priority   int       `json:"priority"`
		Attributes struct {
			Number float64 `json:"10009"`
		} `json:"attributes"`
	}
	if err := json.Unmarshal([]byte(payload), &p); err != nil {
		return fleet.Message{}, err
	}
	return fleet.Message{
		DeviceID: device, Codec: "8E", Time: p.Time, Latitude: p.Latitude, Longitude: p.Longitude, Altitude: p.Altitude,
		Angle: p.Angle, Speed: p.Speed, Satellites: p.Satellites, Priority: p.Priority,
		Attributes: []fleet.Attribute{fleet.NumberAttribute("10009", p.Attributes.Number)},
	}, nil
}

// junk returns the bad entries that were sent, by ID.
func (r *run) junk() (_ map[string]fleet.Sent, err error) {
	sent, err := r.load.Open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, sent.Close()) }()
	junk := make(map[string]fleet.Sent)
	return junk, sent.Scan(func(_ int64, s *fleet.Sent) error {
		if s.Junk != "" {
			junk[s.ID.String()] = *s
		}
		return nil
	})
}

// dlq runs a command of the processor on dead letters and returns what it printed.
func (r *run) dlq(ctx context.Context, args ...string) ([]byte, error) {
	cmd, err := r.line.Operator(ctx, append([]string{"dlq"}, args...)...)
	if err != nil {
		return nil, err
	}
	var notes bytes.Buffer
	cmd.Stderr = &notes
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("processor dlq %s: %w: %s", args[0], err, notes.Bytes())
	}
	return out, nil
}
