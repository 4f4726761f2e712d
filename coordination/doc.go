// Package coordination lets instances share one stream: it tracks the members,
// elects a leader, decides who owns which shard, and runs the leader's tasks.
//
// A member has a heartbeat in Redis (Membership). One member leads (Elector): it
// holds a lock in Redis and a term in Postgres, and assigns the shards (Leader).
// Every member makes its owned shards match its assigned shards (Reconciler). The
// decisions are functions of internal/protocol, where the simulation checks them.
//
// States of a member:
//
//	      Join            first poll           Announce           Leave
//	(new) ----> joining ------------> active ----------> leaving -------> gone
//	                                    |                   |               ^
//	                                    +-------------------+---------------+
//	                                      heartbeat silent for MemberTTL
//
// An active member is not eligible for shards while it is cut off from Postgres or
// stalled. Gone is final: an identity that restarts is a new member, with a new
// incarnation.
//
// States of a shard, each edge with its protocol.Action:
//
//	                Acquire: epoch+1, redeliver, grant
//	+--> assigned ------------------------------------> owned
//	|       |  ^                                        |   |
//	|       |  | owner set, budget not used up: Await   |   | other owner or
//	|       +--+                                        |   | epoch: Lose
//	|       |                          assigned to      |   v
//	|       | owner gone, or           another member:  | (owned elsewhere)
//	|       | waited for the budget:   HandOver         v
//	|       | ForceAcquire                           draining
//	|       v                                           |
//	| force-acquired: the old owner's sessions          | in flight committed
//	| ended, epoch+1; then as owned                     | and acknowledged
//	|                                                   v
//	+----------- owner is null ---------------------- released
//
// Promises kept here:
//
//   - P3, P4: safety does not depend on this package. Whatever it believes, an epoch
//     in Postgres decides who may commit, and a term who may assign.
//   - P10: the gauges of the group are absent while their value is unknown.
//   - P8: shards move on the triggers below.
//
// Triggers that take shards away from a member, each with its timeout and the function
// that decides. Apart from these only balance (protocol.Planner, by load) and
// an operator's claim move shards: balance by hand-over, a few at a time
// (protocol.Pace), a claim at once, and it stays for a while
// (protocol.AdoptedFor):
//
//   - The member announces that it leaves (SIGTERM): immediately, and it hands over
//     while it still works. protocol.FailureDetector.Eligible.
//   - Its heartbeat does not advance for MemberTTL. protocol.FailureDetector.Gone.
//   - It does not reach Postgres for SinkGrace while another member does.
//     protocol.FailureDetector.Eligible.
//   - It has entries in flight, and no server call of its workers returns for
//     ClaimThreshold. protocol.FailureDetector.Stalled.
//   - Its calls return, but it commits nothing for ClaimThreshold while another member
//     committed at least ClaimThreshold/2 later. protocol.FailureDetector.Stalled. If no
//     member commits, no shard moves: the cause would move along.
//   - It does not release a shard that was reassigned: after HandoffBudget (six times that while it commits), or
//     DrainTimeout if it is leaving. protocol.Next returns ForceAcquire.
//
// The leader works in steps, and renews its lock between them. A step that takes too
// long is cut off, logged and tried again when it is due next, and between two steps
// shards are assigned as planned: no task, nor a server that is slow for one task, ends
// the term or holds up a plan for longer than a step. What may need longer runs beside the steps
// (Deps.Beside), for as long as the lock is renewed. A term ends for what a leader
// cannot do without: its lock, the list of shards and members, and writing assignments,
// of which those wait for a later pass whose rows another session has locked.
//
// It moves no entries between members (queues belong to shards), and declares no
// member gone within one MemberTTL after Redis was unavailable.
package coordination
