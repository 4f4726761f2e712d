package stream

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// Server is Redis' own configuration, as far as it matters here.
type Server struct {
	Version string
	// Eviction is its maxmemory-policy, "" if it does not tell. Any policy but
	// noeviction may evict a stream.
	Eviction string
	// AppendOnly reports whether it keeps an append-only file, as far as it tells.
	AppendOnly, TellsAppendOnly bool
}

// OldestServer is the first version of Redis that has what is used here: XAUTOCLAIM
// with the deleted IDs, ENTRIESREAD, scripts with flags.
const OldestServer = 7

// TooOld reports whether the server is known to be older than OldestServer.
func (s Server) TooOld() bool {
	major, _, _ := strings.Cut(s.Version, ".")
	n, err := strconv.Atoi(major)
	return err == nil && n < OldestServer
}

// Server queries the server's configuration.
func (g *Group) Server(ctx context.Context) (Server, error) {
	node, err := g.Node(ctx)
	if err != nil {
		return Server{}, failure("find the server that holds the stream", err)
	}
	// INFO works where CONFIG GET does not, for example on managed servers.
	text, err := node.Info(ctx, "everything").Result()
	if err != nil {
		return Server{}, failure("ask Redis about itself", err)
	}
	return ReadServer(text), nil
}

// ReadServer reads a reply to INFO, which a managed server or a proxy may cut.
func ReadServer(text string) (s Server) {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, "redis_version:"); ok {
			s.Version = strings.TrimSpace(v)
		}
		if v, ok := strings.CutPrefix(line, "maxmemory_policy:"); ok {
			s.Eviction = strings.TrimSpace(v)
		}
		if v, ok := strings.CutPrefix(line, "aof_enabled:"); ok {
			s.TellsAppendOnly, s.AppendOnly = true, strings.TrimSpace(v) == "1"
		}
	}
	return s
}

// Node returns the server that holds the stream. On a Cluster, a command
// without a key is answered by any node, even a replica of another one.
func (g *Group) Node(ctx context.Context) (redis.Cmdable, error) {
	if c, ok := g.client.(*redis.ClusterClient); ok {
		return c.MasterForKey(ctx, g.names.Stream)
	}
	return g.client, nil
}

// OtherStream is another stream on the same server.
type OtherStream struct {
	Name   string
	Length int64
}

// Bounds of the search for other streams: it runs at start, on a server with
// any number of keys.
const (
	otherStreamPages   = 200
	otherStreamPage    = 1000
	otherStreamsEnough = 10
)

// OtherStreams returns non-empty streams whose keys begin with prefix, other
// than this one. It scans a bounded number of keys and returns at most ten.
func (g *Group) OtherStreams(ctx context.Context, prefix string) ([]OtherStream, error) {
	var found []OtherStream
	var err error
	if cluster, ok := g.client.(*redis.ClusterClient); ok {
		var mu sync.Mutex
		err = cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
			some, err := g.otherStreamsOn(ctx, node, prefix)
			mu.Lock()
			defer mu.Unlock()
			found = append(found, some...)
			return err
		})
	} else {
		found, err = g.otherStreamsOn(ctx, g.client, prefix)
	}
	if err != nil {
		return nil, failure("look for other streams", err)
	}
	return found[:min(len(found), otherStreamsEnough)], nil
}

func (g *Group) otherStreamsOn(ctx context.Context, node redis.Cmdable, prefix string) ([]OtherStream, error) {
	var found []OtherStream
	cursor := uint64(0)
	for range otherStreamPages {
		keys, next, err := node.ScanType(ctx, cursor, escapeGlob(prefix)+"*", otherStreamPage, "stream").Result()
		if err != nil {
			return nil, fmt.Errorf("scan: %w", err)
		}
		for _, key := range keys {
			if key == g.names.Stream {
				continue
			}
			n, err := node.XLen(ctx, key).Result()
			if err != nil {
				return nil, fmt.Errorf("measure stream %s: %w", key, err)
			}
			if n > 0 {
				found = append(found, OtherStream{Name: key, Length: n})
			}
		}
		if cursor = next; cursor == 0 || len(found) >= otherStreamsEnough {
			break
		}
	}
	return found, nil
}

// escapeGlob escapes the characters that SCAN's MATCH interprets.
func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}
