package fleet

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// RedisPublisher appends entries to a stream of Redis as tcp-ingestion does.
type RedisPublisher struct {
	client  redis.UniversalClient
	cluster *redis.ClusterClient // nil for one server
	stream  string
	maxLen  int64
}

// NewPublisher returns a publisher that trims the stream to about maxLen
// entries with each append, or never when maxLen is 0.
func NewPublisher(client redis.UniversalClient, stream string, maxLen int64) *RedisPublisher {
	return &RedisPublisher{client: client, stream: stream, maxLen: maxLen}
}

// replicateWithin is how long an entry may take to reach a replica before it counts as
// one that may be lost.
const replicateWithin = 500 * time.Millisecond

// NewClusterPublisher returns a publisher for a Redis Cluster. It asks the node of the
// stream itself: the client for a Cluster repeats a pipeline that broke, and what it adds
// twice is in no send log. An entry is added once a replica of the node has it, too (WAIT),
// as far as the node has one: what Redis replicates later would be lost with its master.
func NewClusterPublisher(addrs []string, stream string, maxLen int64) *RedisPublisher {
	cluster := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: addrs, ClusterStateReloadInterval: time.Second, DialTimeout: time.Second, DialerRetries: 1, ContextTimeoutEnabled: true,
	})
	return &RedisPublisher{cluster: cluster, stream: stream, maxLen: maxLen}
}

// Close closes the connections to a Cluster; other clients are their owners' to close.
func (p *RedisPublisher) Close() error {
	if p.cluster == nil {
		return nil
	}
	return p.cluster.Close()
}

// Publish appends one entry for each list of names and values, in one round
// trip, and returns their IDs. After an error any part may have been added; IDs
// are zero where the outcome is unknown.
func (p *RedisPublisher) Publish(ctx context.Context, entries [][]string) ([]telemetry.EntryID, error) {
	client := p.client
	if p.cluster != nil {
		node, err := p.cluster.MasterForKey(ctx, p.stream)
		if err != nil {
			return nil, appendFailure(len(entries), err)
		}
		client = node
	}
	pipe := client.Pipeline()
	cmds := make([]*redis.Cmd, len(entries))
	for i, fields := range entries {
		args := make([]any, 0, 6+len(fields))
		args = append(args, "xadd", p.stream)
		if p.maxLen > 0 {
			args = append(args, "maxlen", "~", p.maxLen)
		}
		args = append(args, "*")
		for j := range fields {
			args = append(args, &fields[j])
		}
		cmds[i] = pipe.Do(ctx, args...)
	}
	var waited, role *redis.Cmd
	if p.cluster != nil {
		waited, role = pipe.Do(ctx, "wait", 1, replicateWithin.Milliseconds()), pipe.Do(ctx, "role")
	}
	_, err := pipe.Exec(ctx)
	ids := make([]telemetry.EntryID, len(entries))
	for i, cmd := range cmds {
		text, cmdErr := cmd.Text()
		if cmdErr != nil {
			continue
		}
		if ids[i], cmdErr = telemetry.ParseEntryID(text); cmdErr != nil && err == nil {
			err = cmdErr
		}
	}
	if p.cluster != nil {
		if err == nil {
			err = replicated(waited, role)
		}
		if err != nil {
			p.cluster.ReloadState(ctx)
			clear(ids)
		}
	}
	if err != nil {
		return ids, appendFailure(len(entries), err)
	}
	return ids, nil
}

// replicated returns an error if a master has replicas and none has what was written.
func replicated(waited, role *redis.Cmd) error {
	n, err := waited.Int()
	if err != nil || n > 0 {
		return err
	}
	about, err := role.Slice()
	if err != nil {
		return err
	}
	if replicas, ok := about[len(about)-1].([]any); !ok || len(replicas) > 0 {
		return fmt.Errorf("no replica had them within %s", replicateWithin)
	}
	return nil
}

// appendFailure marks as Misconfigured what no other attempt would mend.
func appendFailure(entries int, err error) error {
	err = fmt.Errorf("append %d entries: %w", entries, err)
	for _, code := range []string{"WRONGTYPE", "NOPERM", "NOAUTH", "WRONGPASS"} {
		if redis.HasErrorPrefix(err, code) {
			return &protocol.Failure{Kind: protocol.Misconfigured, Code: code, Err: err}
		}
	}
	return err
}
