package modules

import (
	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/pipeline"
)

// bridge is where pipeline and coordination meet: each needs to be told of the
// other, and neither imports the other. Its fields are set while the graph is
// built, before anything runs.
type bridge struct {
	pipeline   *pipeline.Pipeline
	fleet      *coordination.Fleet
	membership *coordination.Membership
}

func newBridge() *bridge { return &bridge{} }

// workStatus is what the heartbeat says of the work.
func (b *bridge) workStatus() coordination.WorkStatus {
	v := b.pipeline.WorkStatus()
	return coordination.WorkStatus{InFlight: v.InFlight, Progress: v.Finished + v.Committed, CallsReturned: v.CallsReturned, Shards: v.Shards}
}

// lost has the reconciler look at once after a shard that the pipeline gave up.
func (b *bridge) lost(pipeline.ShardLost) { b.fleet.Assigned() }

// peers is how many other members wait for entries.
func (b *bridge) peers() int { return b.membership.Peers() }
