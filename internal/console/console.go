package console

import (
	"cmp"
	"context"
	"errors"
	"html/template"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/trmtracking/processor/internal/history"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
)

// Root is the path under which the console is served, and each handler of a console sees
// its pages, whatever path of its own a stream has.
const Root = "/console/"

// Config configures a Console.
type Config struct {
	Version string // of this instance, and its member name
	Member  string
	Streams []Stream // in the order of the list
	Auth    Auth
	// Settings is the configuration of this instance, without secrets.
	Settings []Setting
	// Tiles is the address of a tile server with {z}, {x} and {y}; "" draws vectors only.
	Tiles string
}

// Stream is a stream that is shown.
type Stream struct {
	Stream string
	Group  string
	// Open connects to its fleet as an operator. It contacts no server yet.
	Open func() (*operator.Fleet, error)
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

// Console serves the pages of one stream.
type Console struct {
	cfg    Config
	stream Stream
	root   string // the path under which it is served
	log    *slog.Logger

	pages     map[string]*page
	templates *template.Template
	hub       *hub   // of all streams
	lanes     *lanes // of all streams
	jobs      jobs
	guard     *guard     // of all streams
	beside    []*Console // all streams, itself among them; nil if there is one
	all       []*Console // of the page of all streams: these; otherwise nil

	redis    *cached[operator.RedisView]
	postgres *cached[operator.PostgresView]
	history  *cached[history.Window]
	queues   *cached[map[int]protocol.QueueState]
	groups   *cached[groupsOf]
	deferred *cached[[]store.DeferredRow]
	pinned   *cached[[]store.SettingRow]
	shapes   *cached[[]store.FenceShape] // of any map, as they are shown

	letters       selections[operator.DeadLetterList]
	oneLetter     selections[operator.DeadLetter]
	counted       selections[int]
	oneDeferred   selections[operator.DeferredEntry]
	archived      selections[operator.Page[store.ArchivedLetter]]
	incidentPages selections[operator.Page[store.NumberedIncident]]
	lossPages     selections[operator.Page[store.NumberedLoss]]
	requestPages  selections[operator.Page[store.RequestStatus]]
	auditPages    selections[operator.Page[store.AuditRow]]
	found         selections[[]string]
	devices       selections[operator.Device]
	tracks        selections[operator.TrackWindow]
	explained     selections[operator.Explanation]

	drawing sync.Mutex
	drawnOf string // what the charts were drawn from
	drawn   map[time.Duration][]chart

	mu     sync.Mutex
	fleet  *operator.Fleet // nil while nobody asks
	users  int             // of the connections
	idle   *time.Timer     // ends the connections
	closed bool
}

// newConsole returns the console of a stream. It contacts nothing.
func newConsole(cfg Config, stream Stream, root string, g *guard, h *hub, l *lanes, log *slog.Logger) *Console {
	c := &Console{cfg: cfg, stream: stream, root: root, templates: templatesOf(root), guard: g, hub: h, lanes: l, log: log}
	c.letters.turn, c.counted.turn = l.lists, l.lists
	c.oneLetter.turn, c.devices.turn, c.explained.turn = l.looks, l.looks, l.looks
	c.oneDeferred.turn, c.archived.turn, c.found.turn, c.tracks.turn = l.tables, l.tables, l.tables, l.tables
	c.incidentPages.turn, c.lossPages.turn, c.requestPages.turn, c.auditPages.turn = l.tables, l.tables, l.tables, l.tables
	c.redis = newCached(freshness, func(ctx context.Context) (v operator.RedisView, err error) {
		err = c.with(func(f *operator.Fleet) error {
			v, err = f.RedisView(ctx, c.shardNumber())
			return err
		})
		return v, err
	})
	c.history = newCached(freshness, func(ctx context.Context) (w history.Window, err error) {
		err = c.with(func(f *operator.Fleet) error { w, err = f.History(ctx); return err })
		return w, err
	})
	c.queues = newCached(freshness, func(ctx context.Context) (q map[int]protocol.QueueState, err error) {
		err = c.with(func(f *operator.Fleet) error { q, err = f.Queues(ctx, c.shardNumber()); return err })
		return q, err
	})
	c.postgres = newCached(slower, func(ctx context.Context) (v operator.PostgresView, err error) {
		err = c.with(func(f *operator.Fleet) error { v, err = f.PostgresView(ctx); return err })
		return v, err
	})
	c.groups = newCached(groupsFresh, func(ctx context.Context) (g groupsOf, err error) {
		err = c.with(func(f *operator.Fleet) error {
			g.List, g.Unanswered, err = f.FailureGroups(ctx, operator.Filter{})
			return err
		})
		return g, err
	})
	c.groups.bound, c.groups.turn = scanFor, l.lists
	c.deferred = newCached(2*time.Second, func(ctx context.Context) (list []store.DeferredRow, err error) {
		err = c.with(func(f *operator.Fleet) error { list, err = f.Deferred(ctx, shownRows); return err })
		return list, err
	})
	c.pinned = newCached(5*time.Second, func(ctx context.Context) (list []store.SettingRow, err error) {
		err = c.with(func(f *operator.Fleet) error { list, err = f.PinnedSettings(ctx); return err })
		return list, err
	})
	c.shapes = newCached(5*time.Second, func(ctx context.Context) (list []store.FenceShape, err error) {
		err = c.with(func(f *operator.Fleet) error { list, err = f.Shapes(ctx); return err })
		for i := range list {
			list[i].ID, list[i].Name = cutText(120, list[i].ID), cutText(120, list[i].Name)
		}
		return list, err
	})
	c.shapes.turn = l.tables
	c.pages = c.allPages()
	return c
}

// shardNumber is the pinned number of shards, or one above it.
func (c *Console) shardNumber() int { return cmp.Or(c.postgres.peek().Value.Number, maxShards) }

// Close cancels what runs and ends the connections.
func (c *Console) Close() {
	c.jobs.halt()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.disconnect()
}

// disconnect ends the connections unless they are in use. The caller holds mu.
func (c *Console) disconnect() {
	if c.fleet != nil && c.users == 0 {
		c.fleet.Close()
		c.fleet = nil
	}
}

// with calls ask with connections that stay open meanwhile.
func (c *Console) with(ask func(f *operator.Fleet) error) error {
	fleet, err := c.connect()
	if err != nil {
		return err
	}
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.users--; c.closed {
			c.disconnect()
		} else if c.users == 0 {
			c.idle.Reset(closeAfter)
		}
	}()
	return ask(fleet)
}

var errClosed = errors.New("this instance is stopping")

func (c *Console) connect() (*operator.Fleet, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	if c.fleet == nil {
		fleet, err := c.stream.Open()
		if err != nil {
			return nil, err
		}
		c.fleet = fleet
	}
	if c.idle == nil {
		c.idle = time.AfterFunc(closeAfter, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.disconnect()
		})
	}
	c.idle.Stop()
	c.users++
	return c.fleet, nil
}

// handler returns the handler of everything under Root.
func (c *Console) handler() *http.ServeMux {
	mux := c.plainRoutes()
	mux.HandleFunc("GET "+Root+"export/dead-letters.ndjson", c.exportLetters)
	mux.HandleFunc("GET "+Root+"track.json", c.serveTrack)
	c.actionRoutes(mux)
	return mux
}

// plainRoutes are those that need no fleet.
func (c *Console) plainRoutes() *http.ServeMux {
	mux := http.NewServeMux()
	for path := range c.pages {
		mux.HandleFunc("GET "+Root+path+"{$}", func(w http.ResponseWriter, r *http.Request) { c.servePage(w, r, c.pages[path]) })
	}
	mux.HandleFunc("GET "+Root+"events/{page...}", c.serveEvents)
	mux.HandleFunc("GET "+Root+"assets/{file}", serveAsset)
	mux.HandleFunc("GET "+Root+"runbook/{page}", c.serveRunbook)
	c.signRoutes(mux)
	mux.HandleFunc(Root, func(w http.ResponseWriter, r *http.Request) {
		c.fail(w, r, http.StatusNotFound, c.noPage())
	})
	mux.Handle("GET /console", http.RedirectHandler(Root, http.StatusMovedPermanently))
	return mux
}

func (c *Console) noPage() error {
	if c.all != nil {
		return errors.New("of all streams together there is no such page: choose a stream")
	}
	return errors.New("there is no such page")
}
