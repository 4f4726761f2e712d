package stream

import (
	"context"
	"fmt"
	"strings"
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

// Group speaks to one consumer group of one stream: it deals, reads queues,
// acknowledges, claims. It holds no state of the protocol and is safe for
// concurrent use.
type Group struct {
	client    redis.UniversalClient
	names     Names
	shards    int
	consumers []string
}

// NewGroup returns the group called cfg.Group of the stream cfg.Stream. It
// makes no call.
func NewGroup(client redis.UniversalClient, cfg Config) (*Group, error) {
	if cfg.Stream == "" || cfg.Group == "" || cfg.Shards < 1 || cfg.Shards > 1<<15 {
		return nil, fmt.Errorf("stream %q, group %q, %d shards: all three are needed", cfg.Stream, cfg.Group, cfg.Shards)
	}
	g := &Group{client: client, names: Names{Stream: cfg.Stream, Group: cfg.Group}, shards: cfg.Shards}
	for s := range cfg.Shards {
		g.consumers = append(g.consumers, Consumer(s))
	}
	return g, nil
}

// Names are the keys in use.
func (g *Group) Names() Names { return g.names }

// Shards is the number of shards.
func (g *Group) Shards() int { return g.shards }

// Connect makes a client for a URL: one server, or several addresses of a
// Sentinel (a query parameter master_name) or of a Cluster (several hosts
// separated by commas, or addr parameters). It makes no call.
//
// The client never repeats a command by itself: whether a command may be
// repeated is for the protocol to decide.
func Connect(cfg Config) (redis.UniversalClient, error) {
	opts := &redis.UniversalOptions{}
	url := cfg.URL
	var hosts []string
	if scheme, rest, ok := strings.Cut(url, "://"); ok && scheme != "unix" {
		authority, path, _ := strings.Cut(rest, "/")
		auth, list := "", authority
		if at := strings.LastIndexByte(authority, '@'); at >= 0 {
			auth, list = authority[:at+1], authority[at+1:]
		}
		if hosts = strings.Split(list, ","); len(hosts) > 1 {
			url = scheme + "://" + auth + hosts[0] + "/" + path
		}
	}
	var master string
	if base, query, ok := strings.Cut(url, "?"); ok {
		var rest []string
		for _, kv := range strings.Split(query, "&") {
			if v, ok := strings.CutPrefix(kv, "master_name="); ok {
				master = v
				continue
			}
			rest = append(rest, kv)
		}
		url = base
		if len(rest) > 0 {
			url += "?" + strings.Join(rest, "&")
		}
	}
	one, err := redis.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("REDIS_URL: want redis://user:password@host:6379/0: %w", redact(err, cfg.URL))
	}
	opts.Addrs = []string{one.Addr}
	if len(hosts) > 1 {
		opts.Addrs = hosts
	}
	opts.MasterName = master
	opts.Username, opts.Password, opts.DB, opts.TLSConfig = one.Username, one.Password, one.DB, one.TLSConfig
	if one.Network == "unix" {
		one.MaxRetries, one.ClientName = -1, cfg.Name
		one.ReadTimeout, one.WriteTimeout = cfg.Timeout, cfg.Timeout
		return redis.NewClient(one), nil
	}
	opts.ClientName = cfg.Name
	opts.MaxRetries = -1
	opts.DialTimeout, opts.ReadTimeout, opts.WriteTimeout = cfg.Timeout, cfg.Timeout, cfg.Timeout
	opts.PoolSize = 32
	opts.ContextTimeoutEnabled = true
	opts.DisableIdentity = true
	return redis.NewUniversalClient(opts), nil
}

// redact keeps a password in a URL out of the error.
func redact(err error, url string) error {
	return fmt.Errorf("%s", strings.ReplaceAll(err.Error(), url, "(value not shown)"))
}

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
