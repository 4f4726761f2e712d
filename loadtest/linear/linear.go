// Package linear judges the history of a fleet's fenced registers: the epochs of the
// shards, the tokens of their acknowledgements, the dispatch lease and the term of the
// leader. Each is a register that members take under a new token; whatever is done
// under a token that is no longer the newest must fail.
//
// A history is right if its operations can be put into one order, each somewhere
// between its call and its return, in which every one of them is legal. That order is
// searched for by porcupine, which knows nothing of the service.
package linear

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/trmtracking/processor/internal/fencelog"
)

// register is the state of a register.
type register struct {
	token  string // "" while nobody has it
	number int64  // the highest so far
}

// step is the model of one register, which has no faults. Taking it again under the
// same random token, as a renewal does, is legal; a number never comes twice.
func step(state, input, _ any) (legal bool, next any) {
	r, o := state.(register), input.(fencelog.Op)
	switch o.Kind {
	case fencelog.Take:
		if o.Number != 0 && o.Number <= r.number {
			return false, r
		}
		return true, register{token: o.Token, number: max(r.number, o.Number)}
	case fencelog.Use:
		return r.token == o.Token, r
	case fencelog.Give:
		if r.token == o.Token {
			r.token = ""
		}
		return true, r
	default:
		return false, r
	}
}

func model() porcupine.Model {
	return porcupine.Model{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			of := make(map[string][]porcupine.Operation)
			for _, o := range history {
				name := o.Input.(fencelog.Op).Register
				of[name] = append(of[name], o)
			}
			var parts [][]porcupine.Operation
			for _, name := range slices.Sorted(maps.Keys(of)) {
				parts = append(parts, of[name])
			}
			return parts
		},
		Init: func() any { return register{} },
		Step: step,
		DescribeOperation: func(input, _ any) string {
			o := input.(fencelog.Op)
			return fmt.Sprintf("%s: %s %s %s", o.By, o.Kind, o.Register, short(o.Token))
		},
		DescribeState: func(state any) string {
			if r := state.(register); r.token != "" {
				return short(r.token)
			}
			return "free"
		},
	}
}

// short is enough of a random token to tell it from others.
func short(token string) string { return token[:min(8, len(token))] }

// Verdict is what became of the search.
type Verdict struct {
	Ops       int
	Registers int
	Wrong     []string // registers for whose operations there is no order
	Undecided []string // registers for which the time did not suffice
	history   []fencelog.Op
}

// Check judges a history, each register within a time. An operation under a token that
// no member is known to have taken is wrong.
func Check(ops []fencelog.Op, within time.Duration) *Verdict {
	of := make(map[string][]fencelog.Op)
	for _, o := range ops {
		of[o.Register] = append(of[o.Register], o)
	}
	v := &Verdict{Ops: len(ops), Registers: len(of), history: ops}
	for _, name := range slices.Sorted(maps.Keys(of)) {
		switch porcupine.CheckOperationsTimeout(model(), operations(of[name]), within) {
		case porcupine.Illegal:
			v.Wrong = append(v.Wrong, name)
		case porcupine.Unknown:
			v.Undecided = append(v.Undecided, name)
		case porcupine.Ok:
		}
	}
	return v
}

// drawn is how many operations of a register a browser can show.
const drawn = 1500

// Draw writes an interactive picture of the registers that are wrong, or else of each
// dispatch lease and term and the register that was taken most often.
func (v *Verdict) Draw(path string) error {
	names := v.Wrong
	if len(names) == 0 {
		names = []string{"dispatch lease", "leader", v.busiest()}
	}
	var ops []fencelog.Op
	for _, name := range names {
		var mine []fencelog.Op
		for _, o := range v.history {
			if strings.HasPrefix(o.Register, name) {
				mine = append(mine, o)
			}
		}
		slices.SortFunc(mine, func(a, b fencelog.Op) int { return int(a.Call - b.Call) })
		ops = append(ops, mine[max(0, len(mine)-drawn):]...)
	}
	m := model()
	_, info := porcupine.CheckOperationsVerbose(m, operations(ops), time.Minute)
	if err := porcupine.VisualizePath(m, info, path); err != nil {
		return fmt.Errorf("draw the history: %w", err)
	}
	return nil
}

// busiest returns the register that was taken most often.
func (v *Verdict) busiest() string {
	taken, name := make(map[string]int), ""
	for _, o := range v.history {
		if o.Kind == fencelog.Take && o.Number != 0 && !strings.HasPrefix(o.Register, "leader") {
			if taken[o.Register]++; taken[o.Register] > taken[name] {
				name = o.Register
			}
		}
	}
	return name
}

// operations returns a history as porcupine wants it: each member is a client.
func operations(ops []fencelog.Op) []porcupine.Operation {
	clients := make(map[string]int)
	history := make([]porcupine.Operation, len(ops))
	for i, o := range ops {
		id, ok := clients[o.By]
		if !ok {
			id = len(clients)
			clients[o.By] = id
		}
		history[i] = porcupine.Operation{ClientId: id, Input: o, Call: o.Call, Return: o.Return}
	}
	return history
}
