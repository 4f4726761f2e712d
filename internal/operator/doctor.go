package operator

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/trmtracking/processor/internal/fault"
)

// otherStreamPrefix is the prefix of the platform's telemetry streams.
const otherStreamPrefix = "telemetry:"

// Diagnose examines Redis, Postgres, the stream, the group, the schema and this
// machine with the settings of the service, and changes nothing.
func (f *Fleet) Diagnose(ctx context.Context) *Diagnosis {
	ctx, cancel := context.WithTimeout(ctx, 3*askTimeout)
	defer cancel()
	d := &Diagnosis{}
	d.examine(ctx, f)
	return d
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
}

// Diagnosis is what is wrong, and what is not.
type Diagnosis struct {
	Trouble  bool      `json:"trouble"`
	Findings []Finding `json:"findings"`
}

func (d *Diagnosis) add(level, about, what, remedy string) {
	d.Findings = append(d.Findings, Finding{Level: level, About: about, What: what, Remedy: remedy})
	d.Trouble = d.Trouble || level == LevelError
}

func (d *Diagnosis) ok(about, format string, args ...any) {
	d.add(LevelOK, about, fmt.Sprintf(format, args...), "")
}

// unreachable adds that a server is unreachable, or that it returns an error. One
// that rejects the login is running; only its URL is wrong.
func (d *Diagnosis) unreachable(about string, err error, silent, answered string) {
	var said *fault.ServerError
	switch {
	case !errors.As(err, &said):
		d.add(LevelError, about, err.Error(), answered)
	case fault.ExitCode(err) == fault.Config:
		d.add(LevelError, about, strings.TrimPrefix(said.What, about+" "), said.Remedy)
	default:
		d.add(LevelError, about, strings.TrimPrefix(said.What, about+" "), silent)
	}
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
func (d *Diagnosis) Warn(about, what, remedy string) { d.add(LevelWarning, about, what, remedy) }
