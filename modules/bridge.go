package modules

import (
	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/pipeline"
)

// bridge connects pipeline and coordination, which call each other without
// importing each other. Its fields are set while the graph is built, before
// anything runs.
type bridge struct {
	pipeline   *pipeline.Pipeline
	fleet      *coordination.Fleet
	membership *coordination.Membership
	usage      usage
}

func newBridge() *bridge { return &bridge{} }

// workStatus returns the progress that the heartbeat reports.
func (b *bridge) workStatus() coordination.WorkStatus {
	v := b.pipeline.WorkStatus()
	return coordination.WorkStatus{
		InFlight: v.InFlight, Progress: v.Finished + v.Committed, CallsReturned: v.CallsReturned, Shards: v.Shards, ShardFinished: v.ShardFinished, Blocked: v.Blocked, Refusal: v.Refusal, Waits: v.Waits, Hot: v.Hot,
		Usage: b.usage.sample(v.Finished, v.Dispatches),
	}
}

// lost wakes the reconciler after the pipeline gave a shard up.
func (b *bridge) lost(pipeline.ShardLost) { b.fleet.Assigned() }

// peers returns the number of other members that can accept entries.
func (b *bridge) peers() int { return b.membership.Peers() }
