package config

import (
	"fmt"
	"strings"
)

// Problem is one variable that breaks one rule.
type Problem struct {
	Variable string `json:"variable"`
	Value    string `json:"value"` // as given, without secrets
	Rule     string `json:"rule"`
}

// String returns the problem on one line.
func (p Problem) String() string {
	if p.Value == "" {
		return p.Variable + " " + p.Rule
	}
	return fmt.Sprintf("%s=%q %s", p.Variable, p.Value, p.Rule)
}

// Error is every problem of a configuration.
type Error struct {
	Problems []Problem
}

// Error returns the problems, one per line.
func (e *Error) Error() string {
	var b strings.Builder
	if len(e.Problems) == 1 {
		b.WriteString("1 problem in the configuration:")
	} else {
		fmt.Fprintf(&b, "%d problems in the configuration:", len(e.Problems))
	}
	for _, p := range e.Problems {
		b.WriteString("\n  " + p.String())
	}
	return b.String()
}

// ExitCode returns the exit code of an invalid configuration.
func (e *Error) ExitCode() int { return 3 }

// report collects problems.
type report struct {
	problems []Problem
}

func (r *report) add(variable, value, rule string, args ...any) {
	r.problems = append(r.problems, Problem{Variable: variable, Value: value, Rule: fmt.Sprintf(rule, args...)})
}

// has reports whether the variable is invalid already, so that a rule about two
// variables does not check a value that was never set.
func (r *report) has(variables ...string) bool {
	for _, p := range r.problems {
		for _, v := range variables {
			if p.Variable == v {
				return true
			}
		}
	}
	return false
}

func (r *report) err() error {
	if len(r.problems) == 0 {
		return nil
	}
	return &Error{Problems: r.problems}
}
