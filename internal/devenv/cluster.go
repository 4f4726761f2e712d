package devenv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"
)

const (
	clusterMasters = 3
	clusterSlots   = 16384
	migrateTimeout = 10 * time.Second
)

// Cluster is a Redis Cluster of three masters, each with a replica that takes over
// within a few seconds when its master is away.
type Cluster struct {
	nodes []*Server // the masters it began with, then a replica of each, in order
}

// newCluster returns the nodes of a Cluster, which do not run yet.
func newCluster(k redisKind, envDir string, user *account, dog *watchdog) *Cluster {
	c := &Cluster{}
	for n := range 2 * clusterMasters {
		k.node = n + 1
		c.nodes = append(c.nodes, newServer(k, envDir, user, dog))
	}
	return c
}

// URL returns how clients name the Cluster, by all nodes.
func (c *Cluster) URL() string {
	url := c.nodes[0].URL() + "?"
	for i, n := range c.nodes[1:] {
		if i > 0 {
			url += "&"
		}
		url += "addr=" + n.Addr()
	}
	return url
}

// Nodes returns all nodes.
func (c *Cluster) Nodes() []*Server { return slices.Clone(c.nodes) }

// create starts the nodes and joins them.
func (c *Cluster) create(ctx context.Context) error {
	if err := c.each(func(n *Server) error { return n.create(ctx) }); err != nil {
		return err
	}
	for i, n := range c.nodes {
		// Nodes that begin with the same epoch need a while to agree on others.
		if _, err := n.ask(ctx, "cluster", "set-config-epoch", i+1); err != nil {
			return err
		}
		if i < clusterMasters {
			if _, err := n.ask(ctx, "cluster", "addslotsrange", i*clusterSlots/clusterMasters, (i+1)*clusterSlots/clusterMasters-1); err != nil {
				return err
			}
		}
		if i > 0 {
			if _, err := c.nodes[0].ask(ctx, "cluster", "meet", "127.0.0.1", n.Port(), busPort(n.Port())); err != nil {
				return err
			}
		}
	}
	if err := c.await(ctx, c.agreed); err != nil {
		return err
	}
	for i, n := range c.nodes[:clusterMasters] {
		id, err := n.ask(ctx, "cluster", "myid")
		if err == nil {
			_, err = c.nodes[clusterMasters+i].ask(ctx, "cluster", "replicate", id)
		}
		if err != nil {
			return err
		}
	}
	return c.Await(ctx)
}

// Await waits until all nodes run, agree on who serves which slots, and each master has
// a replica that has all that was written to it before the call.
func (c *Cluster) Await(ctx context.Context) error {
	written := map[*Server]int64{}
	return c.await(ctx, func(ctx context.Context) error {
		if err := c.agreed(ctx); err != nil {
			return err
		}
		masters, err := c.masters(ctx, c.nodes[0])
		if err != nil {
			return err
		}
		for _, n := range c.nodes {
			list, err := c.masters(ctx, n)
			if err != nil {
				return err
			}
			if !slices.Equal(list, masters) {
				return fmt.Errorf("node %s has another view of the slots", n.Addr())
			}
		}
		for _, s := range masters {
			if err := replicated(ctx, s.node, written); err != nil {
				return err
			}
		}
		return nil
	})
}

// agreed returns an error unless all nodes know each other and serve.
func (c *Cluster) agreed(ctx context.Context) error {
	for _, n := range c.nodes {
		info, err := n.ask(ctx, "cluster", "info")
		if err != nil {
			return err
		}
		if !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d\r\n", len(c.nodes))) {
			return fmt.Errorf("the cluster is not up: %s", info)
		}
	}
	return nil
}

// replicated returns an error unless a replica of a master has what was written to it
// when it was first asked.
func replicated(ctx context.Context, master *Server, written map[*Server]int64) error {
	info, err := master.ask(ctx, "info", "replication")
	if err != nil {
		return err
	}
	if _, asked := written[master]; !asked {
		written[master] = numberAfter(info, "master_repl_offset:")
	}
	if numberAfter(info, "state=online,offset=") < written[master] {
		return fmt.Errorf("no replica of %s is in step: %s", master.Addr(), info)
	}
	return nil
}

// numberAfter returns the number that follows a text, -1 where there is none.
func numberAfter(text, name string) int64 {
	_, rest, _ := strings.Cut(text, name)
	end := strings.IndexAny(rest, ",\r")
	n, err := strconv.ParseInt(rest[:max(0, end)], 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// await waits until a condition holds, and returns what was missing at the end.
func (c *Cluster) await(ctx context.Context, condition func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		err := condition(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("wait for the Redis Cluster: %w", context.Cause(ctx)), err)
		case <-ticker.C:
		}
	}
}

// served is a range of slots and the node that serves it.
type served struct {
	first, last int
	node        *Server
}

// masters returns who serves which slots, as a node knows it.
func (c *Cluster) masters(ctx context.Context, of *Server) ([]served, error) {
	client := of.client()
	defer func() { _ = client.Close() }()
	ranges, err := client.ClusterSlots(ctx).Result() //nolint:staticcheck // CLUSTER SHARDS also names masters that serve nothing
	if err != nil {
		return nil, fmt.Errorf("ask %s who serves the slots: %w", of.Addr(), err)
	}
	var list []served
	for _, r := range ranges {
		i := slices.IndexFunc(c.nodes, func(n *Server) bool { return n.Addr() == r.Nodes[0].Addr })
		if i < 0 {
			return nil, fmt.Errorf("slots %d to %d are served by %s, which is no node of ours", r.Start, r.End, r.Nodes[0].Addr)
		}
		list = append(list, served{r.Start, r.End, c.nodes[i]})
	}
	slices.SortFunc(list, func(a, b served) int { return a.first - b.first })
	return list, nil
}

// Master returns the slot of a key and the node that serves it.
func (c *Cluster) Master(ctx context.Context, key string) (slot int, node *Server, err error) {
	for _, n := range c.nodes {
		if n.PID() == 0 {
			continue
		}
		text, err := n.ask(ctx, "cluster", "keyslot", key)
		if err != nil {
			return 0, nil, err
		}
		if slot, err = strconv.Atoi(text); err != nil {
			return 0, nil, fmt.Errorf("ask for the slot of a key: %w", err)
		}
		list, err := c.masters(ctx, n)
		if err != nil {
			return 0, nil, err
		}
		for _, s := range list {
			if s.first <= slot && slot <= s.last {
				return slot, s.node, nil
			}
		}
	}
	return slot, nil, fmt.Errorf("no node serves slot %d", slot)
}

// Move moves the slot of a key, and what is in it, to another master. Clients are
// redirected meanwhile.
func (c *Cluster) Move(ctx context.Context, key string, to *Server) error {
	slot, from, err := c.Master(ctx, key)
	if err != nil || from == to {
		return err
	}
	source, err := from.ask(ctx, "cluster", "myid")
	if err != nil {
		return err
	}
	target, err := to.ask(ctx, "cluster", "myid")
	if err != nil {
		return err
	}
	if _, err := to.ask(ctx, "cluster", "setslot", slot, "importing", source); err != nil {
		return err
	}
	if _, err := from.ask(ctx, "cluster", "setslot", slot, "migrating", target); err != nil {
		return err
	}
	client := from.client()
	defer func() { _ = client.Close() }()
	for {
		keys, err := client.ClusterGetKeysInSlot(ctx, slot, 10).Result()
		if err != nil {
			return fmt.Errorf("list the keys of slot %d: %w", slot, err)
		}
		if len(keys) == 0 {
			break
		}
		args := []any{"migrate", "127.0.0.1", to.Port(), "", 0, migrateTimeout.Milliseconds(), "keys"}
		for _, k := range keys {
			args = append(args, k)
		}
		if err := client.Do(ctx, args...).Err(); err != nil {
			return fmt.Errorf("move the keys of slot %d: %w", slot, err)
		}
	}
	// The target first: while nobody serves it, the slot is lost to the clients.
	for _, n := range []*Server{to, from} {
		if _, err := n.ask(ctx, "cluster", "setslot", slot, "node", target); err != nil {
			return err
		}
	}
	return nil
}

// Stop ends all nodes in an orderly way.
func (c *Cluster) Stop(ctx context.Context) error {
	return c.each(func(n *Server) error { return n.Stop(ctx) })
}

// Start starts the nodes that do not run, and waits until the Cluster is whole.
func (c *Cluster) Start(ctx context.Context) error {
	if err := c.each(func(n *Server) error { return n.Start(ctx) }); err != nil {
		return err
	}
	return c.Await(ctx)
}

func (c *Cluster) each(do func(*Server) error) error {
	var all errgroup.Group
	for _, n := range c.nodes {
		all.Go(func() error { return do(n) })
	}
	return all.Wait()
}

// client returns a client of one node, which follows no redirection.
func (s *Server) client() *redis.Client {
	return redis.NewClient(&redis.Options{Addr: s.Addr(), MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true, ReadTimeout: migrateTimeout})
}

// ask sends a command to a node and returns its answer as text.
func (s *Server) ask(ctx context.Context, args ...any) (string, error) {
	client := s.client()
	defer func() { _ = client.Close() }()
	answer, err := client.Do(ctx, args...).Result()
	if err != nil {
		return "", fmt.Errorf("%v to %s: %w", args, s.Addr(), err)
	}
	return fmt.Sprint(answer), nil
}
