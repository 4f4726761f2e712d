package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"time"
)

const (
	// maxClients is the number of streams at a time, fewer than the connections that
	// the endpoint takes, so that others end none of them; a page beyond it is complete
	// and does not move.
	maxClients = 50
	// writeFor is how long a client may take to accept an update.
	writeFor = 5 * time.Second
	// quietFor is the longest time without an update.
	quietFor = 15 * time.Second
)

// update is the parts of a page that changed, by their ID.
type update map[string]string

// hub has one topic for each page that is watched. A topic runs while it has
// clients.
type hub struct {
	mu     sync.Mutex
	topics map[string]*topic
	n      int
}

// topic is what the clients of one page watch.
type topic struct {
	cancel  context.CancelFunc
	clients map[*client]bool
	shown   *event // the last state of all parts, for all who join before the next
}

// event is an update as it is sent, encoded once for all who get the same.
type event struct {
	update
	once sync.Once
	text []byte
}

func (e *event) encoded() []byte {
	e.once.Do(func() {
		var b bytes.Buffer
		b.WriteString("data: ")
		out := json.NewEncoder(&b)
		out.SetEscapeHTML(false) // it is no part of a page
		if err := out.Encode(e.update); err != nil {
			panic(err) // text always can be encoded
		}
		b.WriteByte('\n')
		e.text = b.Bytes()
	})
	return e.text
}

// client is one stream. pending is what it has not been sent yet, nil for nothing: a
// later state of a part replaces the earlier one.
type client struct {
	pending *event
	wake    chan struct{}
}

func newHub() *hub { return &hub{topics: make(map[string]*topic)} }

func (h *hub) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.n
}

// renderer makes a state of a page.
type renderer = func(ctx context.Context) (update, error)

// join adds a client to the topic of a name. begin is called with the life of the
// topic and returns what makes a state of it at every tick. It returns nil if there
// are too many clients.
func (h *hub) join(ctx context.Context, name string, every time.Duration, begin func(running context.Context) renderer) *client {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.n >= maxClients {
		return nil
	}
	c := &client{wake: make(chan struct{}, 1)}
	t := h.topics[name]
	if t == nil {
		running, cancel := context.WithCancel(context.WithoutCancel(ctx)) // ends with the last client
		t = &topic{cancel: cancel, clients: make(map[*client]bool), shown: &event{}}
		h.topics[name] = t
		go h.run(running, t, every, begin(running))
	}
	h.n++
	t.clients[c] = true
	c.add(t.shown)
	return c
}

func (h *hub) leave(name string, c *client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.topics[name]
	h.n--
	if delete(t.clients, c); len(t.clients) == 0 {
		t.cancel()
		delete(h.topics, name)
	}
}

// run makes a state at every tick and passes on what changed.
func (h *hub) run(ctx context.Context, t *topic, every time.Duration, render renderer) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		state, err := render(ctx)
		if err == nil {
			h.mu.Lock()
			changed := update{}
			for id, html := range state {
				if t.shown.update[id] != html {
					changed[id] = html
				}
			}
			t.shown = &event{update: state}
			next := &event{update: changed}
			for c := range t.clients {
				c.add(next)
			}
			h.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// add queues an update. The caller holds the hub's lock.
func (c *client) add(next *event) {
	if len(next.update) == 0 {
		return
	}
	if c.pending == nil {
		c.pending = next
	} else { // it is slow, and gets what is newest
		merged := maps.Clone(c.pending.update)
		maps.Copy(merged, next.update)
		c.pending = &event{update: merged}
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// take returns what is pending.
func (h *hub) take(c *client) *event {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := c.pending
	c.pending = nil
	return f
}

// stream sends updates until the client is gone, or does not read.
func (h *hub) stream(w http.ResponseWriter, r *http.Request, c *client) error {
	out := http.NewResponseController(w)
	send := func(text []byte) error {
		if err := out.SetWriteDeadline(time.Now().Add(writeFor)); err != nil {
			return fmt.Errorf("limit the write: %w", err)
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
		return out.Flush()
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	if err := send([]byte("retry: 2000\n\n")); err != nil {
		return err
	}
	quiet := time.NewTicker(quietFor)
	defer quiet.Stop()
	for {
		select {
		case <-r.Context().Done():
			return nil
		case <-quiet.C:
			if err := send([]byte(": quiet\n\n")); err != nil {
				return err
			}
		case <-c.wake:
			if f := h.take(c); f != nil {
				if err := send(f.encoded()); err != nil {
					return err
				}
			}
		}
	}
}

// serveEvents streams the changes of a page.
func (c *Console) serveEvents(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("page")
	p := c.pages[name]
	if p == nil || p.every == 0 {
		c.fail(w, r, http.StatusNotFound, errors.New("there is no such page"))
		return
	}
	query := p.query(r)
	topic := c.root + name + "?" + query
	if len(topic) > maxTopic {
		c.fail(w, r, http.StatusRequestURITooLong, errors.New("the address is too long"))
		return
	}
	client := c.hub.join(r.Context(), topic, p.every, func(running context.Context) renderer {
		watched := r.Clone(running)
		watched.URL.RawQuery = query // all who watch see the same
		render := func(ctx context.Context) (update, error) { return c.parts(p, watched.WithContext(ctx), false) }
		if p.follow != nil {
			return p.follow(running, render)
		}
		return render
	})
	if client == nil {
		w.Header().Set("Retry-After", "30")
		c.fail(w, r, http.StatusServiceUnavailable, fmt.Errorf("%d pages are watched already; this one does not move, reload it", maxClients))
		return
	}
	defer c.hub.leave(topic, client)
	if err := c.hub.stream(w, r, client); err != nil {
		c.log.Debug("a viewer was dropped", "page", name, "err", err)
	}
}

// maxTopic bounds the name of a topic.
const maxTopic = 4096
