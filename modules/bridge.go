package modules

import (
	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/pipeline"
)

// bridge is where pipeline and coordination meet: each needs to be told of the
// other, and neither imports the other. Its fields are set while the graph is
// built, before anything runs.
type bridge struct {
	pipeline *pipeline.Pipeline
	fleet    *coordination.Fleet
	roster   *coordination.Roster
}

func newBridge() *bridge { return &bridge{} }

// vitals is what the heartbeat says of the work.
func (b *bridge) vitals() coordination.Vitals {
	v := b.pipeline.Vitals()
	return coordination.Vitals{InHand: v.InHand, Progress: v.Finished + v.Worked, Tried: v.Tried, Shards: v.Shards}
}

// lost has the keeper look at once after a shard that the pipeline gave up.
func (b *bridge) lost(pipeline.Lost) { b.fleet.Assigned() }

// peers is how many other members wait for entries.
func (b *bridge) peers() int { return b.roster.Peers() }
