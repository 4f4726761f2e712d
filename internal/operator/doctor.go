package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/fault"
)

// otherStreamPrefix is the prefix of the platform's telemetry streams.
const otherStreamPrefix = "telemetry:"

// Diagnose examines Redis, Postgres, the stream, the group, the schema and this
// machine, and changes nothing. It compares with what the fleet has pinned; a
// number of shards in the settings is compared, too, unless it is 0.
func (f *Fleet) Diagnose(ctx context.Context) *Diagnosis {
	ctx, cancel := context.WithTimeout(ctx, 3*askTimeout)
	defer cancel()
	d := &Diagnosis{}
	status, known := d.examinePostgres(ctx, f)
	shards := cmp.Or(status.Shards(), f.cfg.Coordination.Shards)
	alive, redisKnown := d.examineRedis(ctx, f, shards, &status)
	if known {
		d.fleet(f.cfg, &status, alive, redisKnown)
		if err := d.examineWaits(ctx, f, status.Shards()); err != nil {
			d.add(LevelWarning, "waits", "unknown: "+err.Error(), "run this again")
		}
	}
	d.examineDisk(f.cfg.Crash)
	d.conclude()
	return d
}

// conclude writes the verdict: the worst finding, in one line.
func (d *Diagnosis) conclude() {
	count := make(map[string]int)
	var worst *Finding
	for i := range d.Findings {
		f := &d.Findings[i]
		count[f.Level]++
		if f.Level == LevelError && (worst == nil || f.weight > worst.weight) {
			worst = f
		}
	}
	d.Trouble = worst != nil
	warnings := cli.Count(count[LevelWarning], "warning")
	switch {
	case worst != nil && count[LevelError] > 1:
		d.Verdict = fmt.Sprintf("trouble: %s: %s (and %d more)", worst.About, worst.What, count[LevelError]-1)
	case worst != nil:
		d.Verdict = fmt.Sprintf("trouble: %s: %s", worst.About, worst.What)
	case count[LevelWarning] > 0:
		d.Verdict = "healthy, with " + warnings
	default:
		d.Verdict = "healthy"
	}
}

// The levels of findings, least severe first.
const (
	LevelOK      = "ok"
	LevelWarning = "warning"
	LevelError   = "trouble"
)

// Finding is the result of one check.
type Finding struct {
	Level  string `json:"level"`
	About  string `json:"about"`
	What   string `json:"what"`
	Remedy string `json:"remedy"` // "" for ok
	Count  int    `json:"count"`  // of what it is about, where there are several alike; otherwise 1

	weight int // of two errors the heavier one is the verdict
}

// What goes before other errors in the verdict, the heaviest last.
const (
	weightFull = iota + 1
	weightNobody
	weightAway
)

// Diagnosis is what is wrong, and what is not.
type Diagnosis struct {
	Verdict  string    `json:"verdict"` // in one line
	Trouble  bool      `json:"trouble"`
	Findings []Finding `json:"findings"`
}

func (d *Diagnosis) add(level, about, what, remedy string) *Finding {
	d.Findings = append(d.Findings, Finding{Level: level, About: about, What: what, Remedy: remedy, Count: 1})
	return &d.Findings[len(d.Findings)-1]
}

func (d *Diagnosis) ok(about, format string, args ...any) {
	d.add(LevelOK, about, fmt.Sprintf(format, args...), "")
}

// unreachable adds that a server is unreachable, or that it returns an error. One
// that rejects the login is running; only its URL is wrong.
func (d *Diagnosis) unreachable(about string, err error, silent, answered string) {
	what, remedy := err.Error(), answered
	if said, ok := errors.AsType[*fault.ServerError](err); ok {
		what, remedy = strings.TrimPrefix(said.What, about+" "), silent
		if fault.ExitCode(err) == fault.Config {
			remedy = said.Remedy
		}
	}
	d.add(LevelError, about, what, remedy).weight = weightAway
}

// check adds a finding that is ok unless bad.
func (d *Diagnosis) check(bad bool, level, about, good, what, remedy string) {
	if bad {
		d.add(level, about, what, remedy)
		return
	}
	if good != "" {
		d.ok(about, "%s", good)
	}
}

// Warn adds a warning that the caller found.
func (d *Diagnosis) Warn(about, what, remedy string) {
	d.add(LevelWarning, about, what, remedy)
	d.conclude()
}
