package console

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/trmtracking/processor/internal/operator"
)

// Root is the path under which the console is served.
const Root = "/console/"

// Config configures a Console.
type Config struct {
	Version string // of this instance, and its member name
	Member  string
	Stream  string
	Group   string
	// Open connects to the fleet as an operator. It contacts no server yet.
	Open func() (*operator.Fleet, error)
	Auth Auth
	// Settings is the configuration of this instance, without secrets.
	Settings []Setting
	// Tiles is the address of a tile server with {z}, {x} and {y}; "" draws vectors only.
	Tiles string
}

// Setting is one variable with its value in effect.
type Setting struct {
	Name, Value, Default, Help string
	Pinned                     string // what the fleet has pinned; "" for a setting of the instance
	Changed                    bool   // it is not the default
}

// maxShards is assumed while Postgres has not told the number.
const maxShards = 4096

// closeAfter is how long connections outlive the last question.
const closeAfter = time.Minute

// Console serves the pages. Run must be called for its streams to end with the
// service.
type Console struct {
	cfg Config
	log *slog.Logger

	pages map[string]*page
	hub   *hub
	jobs  jobs
	guard *guard

	redis    *cached[operator.RedisView]
	postgres *cached[operator.PostgresView]

	mu    sync.RWMutex
	fleet *operator.Fleet // nil while nobody asks
	close *time.Timer     // ends the connections
}

// New returns a console. It contacts nothing.
func New(cfg Config, log *slog.Logger) (*Console, error) {
	c := &Console{cfg: cfg, log: log.With("component", "console")}
	var err error
	if c.guard, err = newGuard(cfg.Auth); err != nil {
		return nil, err
	}
	c.redis = newCached(freshness, func(ctx context.Context) (v operator.RedisView, err error) {
		err = c.with(func(f *operator.Fleet) error {
			shards := c.postgres.peek().Value.Number
			if shards == 0 {
				shards = maxShards
			}
			v, err = f.RedisView(ctx, shards)
			return err
		})
		return v, err
	})
	c.postgres = newCached(freshness, func(ctx context.Context) (v operator.PostgresView, err error) {
		err = c.with(func(f *operator.Fleet) error { v, err = f.PostgresView(ctx); return err })
		return v, err
	})
	c.hub = newHub()
	c.pages = c.allPages()
	return c, nil
}

// Close cancels what runs and ends the connections. Requests that follow open them again.
func (c *Console) Close() {
	c.jobs.halt()
	c.disconnect()
}

func (c *Console) disconnect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fleet != nil {
		c.fleet.Close()
		c.fleet = nil
	}
	if c.close != nil {
		c.close.Stop()
	}
}

// with calls ask with connections that stay open meanwhile.
func (c *Console) with(ask func(f *operator.Fleet) error) error {
	for {
		c.mu.RLock()
		if c.fleet != nil {
			c.close.Reset(closeAfter)
			defer c.mu.RUnlock()
			return ask(c.fleet)
		}
		c.mu.RUnlock()
		if err := c.open(); err != nil {
			return err
		}
	}
}

func (c *Console) open() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fleet != nil {
		return nil
	}
	fleet, err := c.cfg.Open()
	if err != nil {
		return err
	}
	if c.fleet = fleet; c.close == nil {
		c.close = time.AfterFunc(closeAfter, c.disconnect)
	}
	c.close.Reset(closeAfter)
	return nil
}

// Handler returns the handler of everything under Root.
func (c *Console) Handler() http.Handler {
	mux := http.NewServeMux()
	for path := range c.pages {
		mux.HandleFunc("GET "+Root+path+"{$}", func(w http.ResponseWriter, r *http.Request) { c.servePage(w, r, c.pages[path]) })
	}
	mux.HandleFunc("GET "+Root+"events/{page...}", c.serveEvents)
	mux.HandleFunc("GET "+Root+"assets/{file}", serveAsset)
	c.actionRoutes(mux)
	mux.HandleFunc(Root, func(w http.ResponseWriter, r *http.Request) {
		c.fail(w, r, http.StatusNotFound, errors.New("there is no such page"))
	})
	mux.Handle("GET /console", http.RedirectHandler(Root, http.StatusMovedPermanently))
	return secured(c.cfg.Tiles, mux)
}

// Clients returns the number of streams that are open.
func (c *Console) Clients() int { return c.hub.count() }
