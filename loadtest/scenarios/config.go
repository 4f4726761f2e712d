package scenarios

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/testbed"
)

// Config says how to run a scenario. Zero values of Plan are the scenario's own.
type Config struct {
	Processor   string   // the program to run
	Image       string   // what containers run; empty means one that is built for the run
	Env         []string // further variables of the instances, NAME=value
	RedisURL    string   // empty means a private server
	PostgresURL string   // empty means a private server
	AllowFaults bool     // on named servers
	// World is what the private Postgres has before the service comes; empty means Plain.
	World devenv.World
	// Rare is a folder in which the instances count the rare branches that they reach,
	// beside the counts of earlier runs; empty means that nobody counts. The program must
	// be built with the tag mutant.
	Rare string
	// Picture is the file for a picture of the history of epochs and leases, which is kept
	// and judged where Rare is counted; empty means none.
	Picture string
	Plan    Plan
	Seed    uint64
	// Slack multiplies what bounds on time allow beyond the configured timeouts.
	// A busy machine running unattended needs more than a quiet one.
	Slack float64
	Dir   string // for logs of the instances and the send log; must exist
	Show  func(testbed.Sample)
	Log   *slog.Logger
}

// Plan is the size of a run.
type Plan struct {
	Instances int
	Streams   int // that share devices and rate; 0 means one
	Devices   int
	Rate      float64       // entries a second
	Duration  time.Duration // of sending
	Entries   int           // of a backlog
	Rounds    int           // of a scenario that repeats something
	Profile   string        // of the fleet: steady, or one with incidents
}

// over returns the plan with the gaps filled from another.
func (p Plan) over(base Plan) Plan {
	if p.Instances == 0 {
		p.Instances = base.Instances
	}
	if p.Streams == 0 {
		p.Streams = base.Streams
	}
	if p.Devices == 0 {
		p.Devices = base.Devices
	}
	if p.Rate == 0 {
		p.Rate = base.Rate
	}
	if p.Duration == 0 {
		p.Duration = base.Duration
	}
	if p.Entries == 0 {
		p.Entries = base.Entries
	}
	if p.Rounds == 0 {
		p.Rounds = base.Rounds
	}
	if p.Profile == "" {
		p.Profile = base.Profile
	}
	return p
}

// The profiles of a fleet.
const (
	ProfileSteady    = "steady"    // even, without incidents
	profileIncidents = "incidents" // all that happens to trackers, and no junk
	profilePolluted  = "polluted"  // that and junk
	profileHot       = "hot"       // one device sends half of everything
	profileSkewed    = "skewed"    // by Zipf's law with s = 1.1, without incidents
)

// Fleet returns the fleet of a plan. Part numbers the fleets of one run: each goes
// on where the one before ended.
func (p Plan) Fleet(seed uint64, part int, duration time.Duration) (fleet.Profile, error) {
	f := fleet.Steady(seed, p.Devices, p.Rate, duration)
	f.Start = f.Start.Add(time.Duration(part) * 24 * time.Hour)
	switch p.Profile {
	case ProfileSteady:
	case profileHot:
		f.Hot = .5
	case profileSkewed:
		start := f.Start
		f = fleet.Skewed(seed, p.Devices, p.Rate, 1.1, duration)
		f.Start = start
	case profilePolluted, profileIncidents:
		f.Gaps, f.Overtakes, f.LostAcks, f.Twins, f.BadClocks, f.NoFixes = .2, .2, .2, .1, .05, .05
		if p.Profile == profilePolluted {
			f.Junk = .02
		}
	default:
		return f, fmt.Errorf("fleet %q: want %s, %s, %s, %s or %s", p.Profile, ProfileSteady, profileIncidents, profilePolluted, profileHot, profileSkewed)
	}
	return f, f.Validate()
}

// Check returns the problems that no retry can fix. The program to run
// may still be missing.
func (c Config) Check(s Scenario) error {
	c.Plan = c.Plan.over(s.Plan)
	errs := []error{c.Plan.Check()}
	if _, err := c.Plan.Fleet(c.Seed, 0, c.Plan.Duration); err != nil {
		errs = append(errs, err)
	}
	if c.Slack < 1 || math.IsNaN(c.Slack) || math.IsInf(c.Slack, 1) {
		errs = append(errs, fmt.Errorf("slack %v: want a number, at least 1", c.Slack))
	}
	switch {
	case c.Plan.Streams > 1 && !s.several:
		errs = append(errs, fmt.Errorf("scenario %s has one stream", s.Name))
	case (s.container || c.Plan.Streams > 0) && c.RedisURL != "":
		errs = append(errs, fmt.Errorf("scenario %s starts its own servers; name none", s.Name))
	case c.PostgresURL != "" && c.World != devenv.Plain && c.World != "":
		errs = append(errs, fmt.Errorf("world %s: only a private Postgres can be one; name no server", c.World))
	case (c.RedisURL == "") != (c.PostgresURL == ""):
		errs = append(errs, errors.New("servers: name both Redis and Postgres, or neither"))
	case c.RedisURL != "" && s.Breaks && !c.AllowFaults:
		errs = append(errs, fmt.Errorf(
			"scenario %s breaks things on purpose: allow it (--allow-faults) on servers that nobody needs, or let it start its own", s.Name))
	case c.RedisURL != "":
		errs = append(errs, testbed.CheckRedis(c.RedisURL))
	}
	return errors.Join(errs...)
}

// Check reports whether the plan can be run, and all that speaks against it.
func (p Plan) Check() error {
	var errs []error
	want := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	want(p.Instances >= 1 && p.Instances <= 16, "instances %d: want 1 to 16", p.Instances)
	want(p.Streams >= 0 && p.Streams <= 16, "streams %d: want 1 to 16", p.Streams)
	want(p.Devices >= max(1, p.Streams), "devices %d: want at least one for each stream", p.Devices)
	want(p.Rate > 0, "rate %v: want more than 0", p.Rate)
	want(p.Duration > 0, "duration %s: want more than 0", p.Duration)
	want(p.Rounds >= 0, "rounds %d: want 0 or more", p.Rounds)
	want(p.Entries >= 0, "entries %d: want 0 or more", p.Entries)
	return errors.Join(errs...)
}
