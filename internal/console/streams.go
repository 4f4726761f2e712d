package console

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
)

// Consoles are those of all streams of an instance. Each of several has a path of its own, so
// that an address says which stream it is of; they share the sign-in and the bound on pages that are live.
type Consoles struct {
	list  []*Console
	front *Console // the page of all streams; the console itself if there is one
	tiles string
}

// New returns the consoles of the streams of an instance. It contacts nothing.
func New(cfg Config, log *slog.Logger) (*Consoles, error) {
	log = log.With("component", "console")
	g, err := newGuard(cfg.Auth)
	if err != nil {
		return nil, err
	}
	cs, h, l := &Consoles{tiles: cfg.Tiles}, newHub(), newLanes()
	if len(cfg.Streams) == 1 {
		cs.front = newConsole(cfg, cfg.Streams[0], Root, g, h, l, log)
		cs.list = []*Console{cs.front}
		return cs, nil
	}
	for _, s := range cfg.Streams {
		cs.list = append(cs.list, newConsole(cfg, s, Root+"streams/"+url.PathEscape(s.Stream)+"/", g, h, l, log.With("stream", s.Stream)))
	}
	for _, c := range cs.list {
		c.beside = cs.list
	}
	cs.front = &Console{cfg: cfg, root: Root, templates: templatesOf(Root), guard: g, hub: h, beside: cs.list, all: cs.list, log: log}
	cs.front.pages = map[string]*page{"": {path: "", title: "Streams", every: slower, names: []string{"stream-list"}, data: cs.front.streams}}
	return cs, nil
}

// Handler returns the handler of everything under Root.
func (cs *Consoles) Handler() http.Handler {
	if len(cs.list) == 1 {
		return secured(cs.tiles, cs.front.handler())
	}
	type served struct {
		*Console
		handler http.Handler
	}
	of := make(map[string]served)
	for _, c := range cs.list {
		of[c.stream.Stream] = served{c, c.handler()}
	}
	mux := cs.front.plainRoutes()
	mux.HandleFunc(Root+"streams/{stream}/{rest...}", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("stream")
		c, there := of[name]
		if !there {
			cs.front.fail(w, r, http.StatusNotFound, fmt.Errorf("the list of this instance has no stream %s", name))
			return
		}
		if rest := r.PathValue("rest"); rest != "" && c.pages[rest+"/"] != nil { // within the stream, which the inner one does not know
			http.Redirect(w, r, c.root+rest+"/", http.StatusFound)
			return
		}
		inner, at := *r, *r.URL
		at.Path, at.RawPath = Root+r.PathValue("rest"), ""
		inner.URL = &at
		c.handler.ServeHTTP(w, &inner)
	})
	return secured(cs.tiles, mux)
}

// Close cancels what runs and ends the connections.
func (cs *Consoles) Close() {
	for _, c := range cs.list {
		c.Close()
	}
}

// streamLink leads to the console of a stream.
type streamLink struct {
	Name, Address string
	Current       bool
}

// switchTo returns where each of several streams has a page; a page of one thing leads to
// the screen that it belongs to.
func (c *Console) switchTo(p *page) []streamLink {
	path := ""
	if p != nil && c.all == nil && p.nav != "" {
		path, _, _ = strings.Cut(p.path, "/")
		if path != "" {
			path += "/"
		}
	}
	var list []streamLink
	for _, other := range c.beside {
		list = append(list, streamLink{Name: other.stream.Stream, Address: other.root + path, Current: other == c})
	}
	return list
}

// streamsData is what the page of all streams shows.
type streamsData struct{ Rows []streamRow }

// streamRow is one stream.
type streamRow struct {
	view
	Name, Address string
}

// Owners says which member owns how many of its shards.
func (r streamRow) Owners() string {
	if !r.Postgres.Known() {
		return unknown
	}
	var parts []string
	for _, m := range r.Members() {
		if m.Owned > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", m.Instance, m.Owned))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

// Backlog is the sum over the streams; nil while one is unknown.
func (d streamsData) Backlog() *int64 { return sumOf(d.Rows, streamRow.Backlog) }

// Rate is the sum over the streams.
func (d streamsData) Rate() *float64 { return sumOf(d.Rows, streamRow.Rate) }

// Letters is the sum over the streams.
func (d streamsData) Letters() *int64 { return sumOf(d.Rows, streamRow.Letters) }

// Lost is the sum over the streams.
func (d streamsData) Lost() *int64 { return sumOf(d.Rows, streamRow.Lost) }

func sumOf[N int64 | float64](rows []streamRow, of func(streamRow) *N) *N {
	var sum N
	for _, r := range rows {
		n := of(r)
		if n == nil {
			return nil
		}
		sum += *n
	}
	return &sum
}

func (c *Console) streams(ctx context.Context, _ *http.Request) (any, error) {
	d := streamsData{Rows: make([]streamRow, len(c.all))}
	var asked sync.WaitGroup
	for i, one := range c.all {
		asked.Go(func() { d.Rows[i] = streamRow{view: one.view(ctx, slower), Name: one.stream.Stream, Address: one.root} })
	}
	asked.Wait()
	return d, nil
}
