package stream

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Connect returns a client for a URL: one server, or several addresses, which
// are those of a Cluster, or of Sentinels if there is a master_name:
//
//	redis://user:password@host:6379/0
//	redis://user:password@host:6379?addr=host2:6379&addr=host3:6379
//	redis://user:password@host:26379?addr=host2:26379&master_name=mymaster
//
// User and password are those of the servers that hold data; Sentinels have
// their own in sentinel_username and sentinel_password. It makes no call.
//
// The client never repeats a command: whether a command may be repeated is for
// the protocol to decide.
func Connect(cfg Config) (redis.UniversalClient, error) {
	opts, err := optionsOf(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("REDIS_URL: want redis://user:password@host:6379/0: %w", err)
	}
	known := &servers{stream: cfg.Stream, nodes: make(map[string]bool)}
	opts.OnConnect = known.connected
	if cfg.Rotated != nil {
		var mu sync.Mutex
		user, password := opts.Username, opts.Password // the last that could be read
		opts.CredentialsProviderContext = func(context.Context) (string, string, error) {
			// A file that is about to be replaced may be empty or away for a moment.
			mu.Lock()
			defer mu.Unlock()
			if text, err := cfg.Rotated(); err == nil && text != "" {
				if now, err := optionsOf(text); err == nil {
					user, password = now.Username, now.Password
				}
			}
			return user, password, nil
		}
	}
	opts.ClientName = cfg.Name
	opts.MaxRetries = -1
	opts.DialTimeout, opts.ReadTimeout, opts.WriteTimeout = cfg.Timeout, cfg.Timeout, cfg.Timeout
	opts.PoolSize = 32
	opts.ContextTimeoutEnabled = true
	opts.DisableIdentity = true
	if opts.MasterName != "" || len(opts.Addrs) == 1 {
		return &watched{UniversalClient: redis.NewUniversalClient(opts), servers: known}, nil
	}
	cluster := opts.Cluster()
	cluster.ClusterStateReloadInterval = clusterReload
	return &watched{UniversalClient: redis.NewClusterClient(cluster), servers: known}, nil
}

// clusterReload bounds how long the new place of a dead node's slots is
// unknown. Only an answer of a live node tells the client earlier.
const clusterReload = time.Second

// CheckURL returns why Connect rejects a URL, without showing it.
func CheckURL(text string) error {
	_, err := optionsOf(text)
	return err
}

// optionsOf parses a URL. Errors do not show it, since it may contain a
// password.
func optionsOf(text string) (*redis.UniversalOptions, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("this cannot be read as a URL; is every special character of the password escaped?")
	}
	query := u.Query()
	opts := &redis.UniversalOptions{
		MasterName:       query.Get("master_name"),
		SentinelUsername: query.Get("sentinel_username"),
		SentinelPassword: query.Get("sentinel_password"),
	}
	more := query["addr"]
	for _, name := range []string{"addr", "master_name", "sentinel_username", "sentinel_password"} {
		query.Del(name)
	}
	u.RawQuery = query.Encode()
	one, err := redis.ParseURL(u.String())
	if err != nil {
		return nil, errors.New(strings.ReplaceAll(err.Error(), u.String(), "(value not shown)"))
	}
	if one.Network == "unix" {
		opts.Addrs = []string{one.Addr}
		opts.Dialer = func(ctx context.Context, _, addr string) (net.Conn, error) {
			return (&net.Dialer{Timeout: opts.DialTimeout}).DialContext(ctx, "unix", addr)
		}
	} else {
		port := "6379"
		if opts.MasterName != "" {
			port = "26379"
		}
		for _, addr := range append([]string{u.Host}, more...) {
			opts.Addrs = append(opts.Addrs, withPort(addr, port))
		}
	}
	opts.Username, opts.Password, opts.DB = one.Username, one.Password, one.DB
	opts.TLSConfig, opts.Protocol = one.TLSConfig, one.Protocol
	return opts, nil
}

func withPort(addr, port string) string {
	if _, _, err := net.SplitHostPort(addr); err == nil {
		return addr
	}
	return net.JoinHostPort(strings.Trim(addr, "[]"), port)
}

// watched is a client that detects when another server answers.
type watched struct {
	redis.UniversalClient
	servers *servers
}

// servers detects a new connection that leads to another server process than
// earlier ones: it may hold an older state, or none. A command on such a
// connection is sent only after the callback of onChange returned.
//
// On a Cluster only nodes that serve the stream count. False positive: the first
// connection to one that took over its slot in an orderly way. Not covered: promotion of
// a replica we are already connected to; CheckServer polls for that.
type servers struct {
	stream string
	// noticing is held from the decision that another server answers until the callback
	// has returned: no connection that is made meanwhile sends a command before. The
	// callback makes no call to Redis.
	noticing sync.Mutex

	mu      sync.Mutex
	changes int             // of the server, noticed and called for
	last    string          // run_id of the last server connected to, "" before the first
	nodes   map[string]bool // run_ids of the nodes of a Cluster
	serves  string          // identity that last answered for the group, "" to ask again
	changed func()
}

// onChange registers the callback. It is called from whichever goroutine
// connects.
func (s *servers) onChange(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = f
}

func (s *servers) connected(ctx context.Context, conn *redis.Conn) error {
	before := s.noticed()
	text, err := conn.Info(ctx, "server").Result()
	if _, refused := errors.AsType[redis.Error](err); err != nil && !refused {
		return err
	}
	mode := serverMode(text)
	if mode == "sentinel" {
		return nil
	}
	id := serverField(text, "run_id")
	if s.stream != "" && mode == "cluster" {
		if err := conn.Exists(ctx, s.stream).Err(); redis.HasErrorPrefix(err, "MOVED") {
			return nil
		}
	}
	return s.notice(mode, id, before)
}

// noticed returns how many changes were noticed.
func (s *servers) noticed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changes
}

// notice records who answers a new connection, and fails it if that is another server than
// before, or the change was noticed while it was made.
func (s *servers) notice(mode, id string, before int) error {
	s.noticing.Lock()
	defer s.noticing.Unlock()
	s.mu.Lock()
	// A server that hides its run_id might be any. A Cluster has several
	// servers.
	another := s.last != "" && (s.last != id || id == unknownServer)
	if mode == "cluster" {
		another = s.last != "" && !s.nodes[id]
		s.nodes[id] = true
	}
	s.last = id
	changed := s.changed
	meanwhile := s.changes != before
	if another {
		s.serves = ""
	}
	s.mu.Unlock()
	if another && changed != nil {
		s.call(changed)
		meanwhile = true
	}
	if !meanwhile || id == unknownServer {
		return nil
	}
	// The commands waiting for this connection were decided for the previous
	// server.
	return errServerChanged
}

// call tells of another server. The caller holds noticing.
func (s *servers) call(changed func()) {
	changed()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
}

// answered records who answers for the group. It reports whether that differs
// from before and the callback was not called for it.
func (s *servers) answered(who string) (changed func(), another bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	another = s.serves != "" && s.serves != who
	s.serves = who
	if another {
		s.last, _, _ = strings.Cut(who, " ")
		s.nodes[s.last] = true
	}
	return s.changed, another && s.changed != nil
}

// errServerChanged fails the connection that noticed the change.
var errServerChanged = errors.New("another Redis server answers than before")

// unknownServer stands for a server that hides its run_id.
const unknownServer = "unknown"

// serverMode is standalone, cluster or sentinel. Valkey says it under a name of its own.
func serverMode(info string) string {
	if mode := serverField(info, "redis_mode"); mode != unknownServer {
		return mode
	}
	return serverField(info, "server_mode")
}

// serverField extracts a field from the reply to INFO.
func serverField(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+":"); ok {
			return value
		}
	}
	return unknownServer
}

// OnServerChange registers f to be called whenever another server process
// answers than before, ahead of the first command sent to it: group state known
// so far may not hold there.
func (g *Group) OnServerChange(f func()) {
	if g.servers != nil {
		g.servers.onChange(func() {
			g.keep()
			f()
		})
	}
}

//go:embed server_identity.lua
var serverIdentitySource string

var serverIdentityScript = redis.NewScript(serverIdentitySource)

// CheckServer asks which server answers for the group, and calls what
// OnServerChange registered when it is another one, or the same with another
// replication history: that can happen without a new connection.
func (g *Group) CheckServer(ctx context.Context) error {
	if g.servers == nil {
		return nil
	}
	who, err := serverIdentityScript.Run(ctx, g.client, []string{g.names.Stream}).Text()
	if err != nil || who == "" {
		return failure("ask which server answers", err)
	}
	g.servers.noticing.Lock()
	defer g.servers.noticing.Unlock()
	if changed, another := g.servers.answered(who); another {
		g.servers.call(changed)
	}
	return nil
}
