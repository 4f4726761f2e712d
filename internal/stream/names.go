package stream

import (
	"fmt"
	"strconv"
	"strings"
)

// Names are the keys of one stream and one group. All of them share one hash
// tag, so that a Redis Cluster keeps them on one node and one script may touch
// them together.
type Names struct {
	Stream string
	Group  string
}

func (n Names) prefix() string {
	if hasTag(n.Stream) {
		return n.Stream + ":" + n.Group
	}
	return "{" + n.Stream + "}:" + n.Group
}

// hasTag reports whether a Cluster hashes a part of the name instead of all of it.
func hasTag(name string) bool {
	at := strings.IndexByte(name, '{')
	return at >= 0 && strings.IndexByte(name[at:], '}') > 1
}

// fitCluster reports whether other keys can share the stream's slot on a
// Cluster: a name that is hashed as a whole cannot be spelled as a tag if it
// contains a closing brace.
func (n Names) fitCluster() bool {
	return hasTag(n.Stream) || !strings.Contains(n.Stream, "}")
}

// DispatchLease returns the key of the lease that lets one member dispatch.
func (n Names) DispatchLease() string { return n.prefix() + ":dispatch-lease" }

// Dispatched returns the key of the last-delivered ID as dispatching left it. It
// reveals when another client moved it.
func (n Names) Dispatched() string { return n.prefix() + ":dispatched" }

// Acked returns the hash of each shard's highest acknowledged entry.
func (n Names) Acked() string { return n.prefix() + ":acked" }

// Pending returns the hash of the number of entries on each queue, as the
// scripts that change it have left it, and under read of how many entries were read
// until which ID. A queue that is not named is unknown.
func (n Names) Pending() string { return n.prefix() + ":pending" }

// Applied returns the hash of each shard's applied ID as it was last committed:
// where Postgres has an older one, it lost commits.
func (n Names) Applied() string { return n.prefix() + ":applied" }

// OwnerTokens returns the hash of the token under which each shard was last
// acquired.
func (n Names) OwnerTokens() string { return n.prefix() + ":owner-tokens" }

// Losses returns the list of losses that are not in the ledger yet.
func (n Names) Losses() string { return n.prefix() + ":losses" }

// Recreations returns the list of group recreations that are not resolved yet.
func (n Names) Recreations() string { return n.prefix() + ":recreations" }

// Shards returns the key of the number of shards, set when it was last changed.
func (n Names) Shards() string { return n.prefix() + ":shards" }

// NotifyChannel returns the channel on which the dispatcher names the shards with
// new entries.
func (n Names) NotifyChannel() string { return n.prefix() + ":notify" }

// LiveChannel returns the channel on which members publish what they commit while
// a console shows it.
func (n Names) LiveChannel() string { return n.prefix() + ":live" }

// Lock returns the key of the leader's lock.
func (n Names) Lock() string { return n.prefix() + ":leader" }

// Members returns the prefix of the heartbeat keys and the name of the set that lists their identities.
func (n Names) Members() string { return n.prefix() + ":members" }

// Heartbeat returns the key of the heartbeat of an identity.
func (n Names) Heartbeat(identity string) string { return n.Members() + ":" + identity }

// Database returns the key that says which database the fleet works with: its
// identity, a space and its address.
func (n Names) Database() string { return n.prefix() + ":database" }

// Paused returns the key that stops the dispatcher. The leader keeps it as Postgres
// says.
func (n Names) Paused() string { return n.prefix() + ":paused" }

// History returns the list of the samples of the last hour, for the console.
func (n Names) History() string { return n.prefix() + ":history" }

// Removed returns the key of the last ID of the stream when the group was removed from it.
func (n Names) Removed() string { return n.prefix() + ":removed" }

// DeadLettered returns the hash of source entries that have a dead letter.
func (n Names) DeadLettered() string { return n.prefix() + ":dead-lettered" }

// All returns the keys of the group besides its streams, without the
// heartbeats.
func (n Names) All() []string {
	return []string{
		n.DispatchLease(), n.Dispatched(), n.Acked(), n.Pending(), n.Applied(), n.OwnerTokens(), n.Losses(), n.Recreations(), n.Shards(), n.Lock(), n.Members(), n.DeadLettered(), n.Database(),
		n.History(), n.Paused(), n.Removed(),
	}
}

// DeadLetters returns the default name of the dead-letter stream. A cluster
// needs the hash tag spelled out; elsewhere the name is the platform's own.
func (n Names) DeadLetters(cluster bool) string {
	if cluster && !hasTag(n.Stream) {
		return "{" + n.Stream + "}:dlq"
	}
	return n.Stream + ":dlq"
}

// Consumer returns the consumer whose pending list is the shard's queue.
func Consumer(shard int) string { return fmt.Sprintf("shard-%02d", shard) }

// ShardOfConsumer returns the shard whose queue a consumer is; ok is false for
// a foreign consumer.
func ShardOfConsumer(name string, shards int) (shard int, ok bool) {
	digits, ok := strings.CutPrefix(name, "shard-")
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	if err != nil || n < 0 || n >= shards || Consumer(n) != name {
		return 0, false
	}
	return n, true
}
