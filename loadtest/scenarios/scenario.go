package scenarios

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/trmtracking/processor/internal/rare"
)

// Scenario is something that happens to a fleet, and what must be true then.
type Scenario struct {
	Name   string
	About  string
	Bounds string // in words, beside those of every scenario
	Plan   Plan   // unless told otherwise
	Breaks bool   // kills, freezes or cuts off: not on named servers unless allowed

	proxied   bool     // instances reach the servers through proxies
	idle      bool     // starts without instances
	bare      bool     // without fences
	durable   bool     // kills Redis: it must keep what it has acknowledged
	container bool     // instances are containers
	publishes bool     // instances publish crossings on a stream, which is read
	cluster   bool     // on a Redis Cluster
	several   bool     // the plan may have several streams
	dated     bool     // its bounds are measured by the times of commits
	held      bool     // holds batches back: the program must be one that can be asked to
	env       []string // of the instances
	// Reaches is the rare branches that a campaign of 20 runs reaches.
	Reaches []rare.Branch
	run     func(ctx context.Context, r *run) error
}

// EveryBound is the bounds that all scenarios share, in words.
const EveryBound = "nothing lost, double, reordered, committed by a stale owner, acknowledged before it is stored, deferred for an outage, or left unfinished; every row equal to the oracle's"

// All returns all scenarios in the order in which they are shown.
func All() []Scenario {
	return []Scenario{split(), scale(), rolling(), rescale(), hot(), failover(), kill(), stall(), outage(), poison(), backlog(), soak(), chaos(), cluster(), containers()}
}

// ByName returns the scenario of that name. It also knows those, not among Scenarios,
// for which the service has to be built in a way of their own.
func ByName(name string) (Scenario, error) {
	all := append(All(), wake())
	i := slices.IndexFunc(all, func(s Scenario) bool { return s.Name == name })
	if i < 0 {
		return Scenario{}, fmt.Errorf("scenario %q: want %s", name, strings.Join(Names(), ", "))
	}
	return all[i], nil
}

// Names returns those of Scenarios.
func Names() []string {
	var names []string
	for _, s := range All() {
		names = append(names, s.Name)
	}
	return names
}
