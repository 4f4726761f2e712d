package stream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Config says where the stream is.
type Config struct {
	URL    string // redis://, rediss:// or unix://; see Connect
	Stream string
	Group  string
	Shards int
	// Timeout bounds the wait for any one reply, beyond the time a blocking
	// read asks for. It must exceed the longest block.
	Timeout time.Duration
	// Name is what the connections are called in CLIENT LIST.
	Name string
}

// Group speaks to one consumer group of one stream: it dispatches, reads queues,
// acknowledges, claims. It holds no state of the protocol and is safe for
// concurrent use.
type Group struct {
	client    redis.UniversalClient
	names     Names
	shards    int
	consumers []string
	servers   *servers // nil on a client that does not watch them
	database  atomic.Pointer[string]
}

// Belong has this client dispatch and register owners only while the fleet works
// with the database of this identity.
func (g *Group) Belong(database string) { g.database.Store(&database) }

// belongs is the identity to compare with, "" where any will do.
func (g *Group) belongs() string {
	if id := g.database.Load(); id != nil {
		return *id
	}
	return ""
}

// FleetDatabase is the identity of the database that the fleet works with and
// its address, both "" where no instance has joined.
func (g *Group) FleetDatabase(ctx context.Context) (id, address string, err error) {
	value, err := g.client.Get(ctx, g.names.Database()).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return "", "", failure("ask which database the fleet works with", err)
	}
	id, address, _ = strings.Cut(value, " ")
	return id, address, nil
}

// NewGroup returns the group called cfg.Group of the stream cfg.Stream. It
// makes no call.
func NewGroup(client redis.UniversalClient, cfg Config) (*Group, error) {
	if cfg.Stream == "" || cfg.Group == "" || cfg.Shards < 1 || cfg.Shards > 1<<15 {
		return nil, fmt.Errorf("stream %q, group %q, %d shards: all three are needed", cfg.Stream, cfg.Group, cfg.Shards)
	}
	var known *servers
	if w, ok := client.(*watched); ok {
		client, known = w.UniversalClient, w.servers
	}
	if _, cluster := client.(*redis.ClusterClient); cluster && !(Names{Stream: cfg.Stream}).fitCluster() {
		return nil, fmt.Errorf("stream %q: on a Redis Cluster no other key can lie beside this name; use one without braces, or with a {hash tag}", cfg.Stream)
	}
	g := &Group{servers: known, client: client, names: Names{Stream: cfg.Stream, Group: cfg.Group}, shards: cfg.Shards}
	for s := range cfg.Shards {
		g.consumers = append(g.consumers, Consumer(s))
	}
	return g, nil
}

// Names are the keys in use.
func (g *Group) Names() Names { return g.names }

// Shards is the number of shards.
func (g *Group) Shards() int { return g.shards }

// redirected has a cluster client look for the slot's new node after an answer
// that says it moved. Raw replies bypass the client's own handling of that.
func (g *Group) redirected(ctx context.Context, err error) error {
	if s := err.Error(); strings.HasPrefix(s, "MOVED ") || strings.HasPrefix(s, "ASK ") {
		if c, ok := g.client.(*redis.ClusterClient); ok {
			c.ReloadState(ctx)
		}
	}
	return err
}
