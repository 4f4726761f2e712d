package stream

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Config locates the stream.
type Config struct {
	URL    string // redis://, rediss:// or unix://; see Connect
	Stream string
	Group  string
	Shards int
	// Timeout bounds the wait for any reply, in addition to the time a blocking
	// read asks for. It must exceed the longest block.
	Timeout time.Duration
	// Rotated yields the URL whose user and password new connections use; nil for URL.
	Rotated func() (string, error)
	// Name is the connections' name in CLIENT LIST.
	Name string
}

// Group issues commands for one consumer group of one stream: it dispatches,
// reads queues, acknowledges, claims. It holds no protocol state and is safe
// for concurrent use.
type Group struct {
	client    redis.UniversalClient
	names     Names
	shards    int
	consumers []string
	servers   *servers // nil for a client that does not detect changes
	database  atomic.Pointer[string]
	newest    atomic.Pointer[telemetry.EntryID]
	kept      atomic.Pointer[kept]

	newPace, queuePace, rangePace readPace
	rest                          atRest
}

// Belong restricts dispatching and registering owners to a fleet that works with
// the database of this identity.
func (g *Group) Belong(database string) { g.database.Store(&database) }

// belongs returns the identity to compare with, "" for any.
func (g *Group) belongs() string {
	if id := g.database.Load(); id != nil {
		return *id
	}
	return ""
}

// MaxShards bounds the number of shards, here and in the names of queues.
const MaxShards = 1 << 15

// NewGroup returns the group cfg.Group of the stream cfg.Stream. It makes no
// call.
func NewGroup(client redis.UniversalClient, cfg Config) (*Group, error) {
	if cfg.Stream == "" || cfg.Group == "" || cfg.Shards < 1 || cfg.Shards > MaxShards {
		return nil, fmt.Errorf("stream %q, group %q, %d shards: all three are needed", cfg.Stream, cfg.Group, cfg.Shards)
	}
	var known *servers
	if w, ok := client.(*watched); ok {
		client, known = w.UniversalClient, w.servers
	}
	if _, cluster := client.(*redis.ClusterClient); cluster && !(Names{Stream: cfg.Stream}).fitCluster() {
		return nil, fmt.Errorf("stream %q: on a Redis Cluster no other key can share this name's slot; use one without braces, or with a {hash tag}", cfg.Stream)
	}
	g := &Group{servers: known, client: client, names: Names{Stream: cfg.Stream, Group: cfg.Group}, shards: cfg.Shards}
	g.newPace.key, g.queuePace.key, g.rangePace.key = cfg.Stream, cfg.Stream, cfg.Stream
	for s := range cfg.Shards {
		g.consumers = append(g.consumers, Consumer(s))
	}
	return g, nil
}

// Names returns the keys in use.
func (g *Group) Names() Names { return g.names }

// redirected makes a cluster client look up the slot's new node after a reply
// that says it moved. Raw replies bypass the client's own handling of that.
func (g *Group) redirected(ctx context.Context, err error) error {
	if s := err.Error(); strings.HasPrefix(s, "MOVED ") || strings.HasPrefix(s, "ASK ") {
		if c, ok := g.client.(*redis.ClusterClient); ok {
			c.ReloadState(ctx)
		}
	}
	return err
}
