// Package coordination is how instances share one stream: who is there, who
// leads, who owns which shard, and what the leader does for all.
//
// A member has a heartbeat in Redis (Roster). One member leads (Elector): it
// holds a lock in Redis and a term in Postgres, and assigns the shards (Leader).
// Every member makes what it owns match what it is assigned (Keeper):
//
//	assigned to us, released     take: raise the epoch, redeliver what Postgres
//	                             may have lost, grant it to the pipeline
//	assigned to us, owner there  wait for its release, at most a budget
//	assigned to us, owner gone   end its sessions, then take
//	assigned away                stop, finish what is in flight, release
//	taken by another member       drop
//
// The decisions themselves are in internal/protocol, where the simulation
// checks them.
//
// Promises kept here:
//
//   - P3, P4: nothing here is needed for safety. Whatever this package believes,
//     an epoch in Postgres decides who may commit, and a term who may assign.
//   - P8: a member that leaves hands its shards over while it still works; one
//     that falls silent for MemberTTL loses them; so does one that is cut off
//     from Postgres while others are not, or that has work in flight and makes no
//     progress for ClaimThreshold while others do, or while no call of a server
//     comes back to it. While nobody advances nothing moves.
//   - P10: the gauges of the group are absent where they are not known.
//
// It does not fence by itself, does not move entries between members (there is
// nothing to move: queues belong to shards), and declares nobody dead for one
// MemberTTL after Redis was away.
package coordination
