package console

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/trmtracking/processor/internal/operator"
)

// action is something that an operator does: a function of internal/operator.
type action struct {
	// start reads the form and returns what runs, and its title. It changes
	// nothing.
	start func(r *http.Request) (title string, run func(ctx context.Context, f *operator.Fleet, j *job) error, err error)
	reads bool // it changes nothing: no reason and no confirmation are needed
	// keeps are the fields of the form that the page gets back, by their names in its address.
	keeps map[string]string
}

const (
	maxForm   = 2 << 20 // bytes
	maxSignIn = 8 << 10 // bytes, of anybody
	maxReason = 500
	maxJobs   = 100       // remembered
	maxTitle  = 2000      // bytes
	maxNext   = 64 << 10  // bytes of a form that are kept for the next step
	jobFor    = time.Hour // an action may take
)

// job is an action at work or done, for its page.
type job struct {
	ID       string
	Title    string
	Operator string
	Reason   string
	Back     string // page to return to
	Began    time.Time

	root   string // of the console
	cancel context.CancelFunc

	mu     sync.Mutex
	done   int
	total  int
	note   string
	lines  []string
	said   int  // bytes of the lines
	full   bool // no further line fits
	links  []jobLink
	next   *nextStep
	ended  time.Time
	err    error
	halted bool
}

// jobLink leads from a result to what it is about.
type jobLink struct{ Text, Address string } // below the root of the console

// nextStep is what can be done with the same form after a dry run.
type nextStep struct {
	Reason  string
	Fields  url.Values // of the form
	Buttons []nextButton
}

type nextButton struct{ Action, Text, Confirm, Class string }

// offer adds a step to what can be done next with the form of the job, unless the form is too
// large to be kept with a hundred others. What is kept is a copy: a value may be a part of
// all that was sent.
func (j *job) offer(fields url.Values, buttons ...nextButton) {
	kept, size := make(url.Values), 0
	for name, values := range fields {
		if slices.Contains([]string{"token", "reason", "confirmed"}, name) {
			continue
		}
		for _, v := range values {
			if size += len(name) + len(v); size > maxNext {
				j.say("the form is too large to go on from here: go on from the page before")
				return
			}
			kept.Add(strings.Clone(name), strings.Clone(v))
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.next = &nextStep{Reason: beginning(fields.Get("reason"), maxReason), Fields: kept, Buttons: buttons}
}

// beginning returns a copy of the beginning of a text, at most so many bytes of it.
func beginning(text string, most int) string {
	if len(text) <= most {
		return strings.Clone(text)
	}
	for most > 0 && !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most] + "…"
}

// link adds a link to the result.
func (j *job) link(text, path string, query url.Values) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.links) < maxLinks {
		j.links = append(j.links, jobLink{text, path + "?" + query.Encode()})
	}
}

// leadBack has the page of the job return to another page.
func (j *job) leadBack(path string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.Back = j.root + path
}

// maxLinks bounds the links of a result.
const maxLinks = 20

// jobState is a job at one moment.
type jobState struct {
	ID, Title, Operator, Reason, Back, Note string
	Began, Ended                            time.Time
	Done, Total                             int
	Lines                                   []string
	Links                                   []jobLink
	Next                                    *nextStep
	Partly                                  bool // done but for what Err names
	Err                                     error
	Running, Cancelled                      bool
	Token                                   string
}

// progress tells the page how far the job is.
func (j *job) progress(done, total int, note string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.done, j.total, j.note = done, total, note
}

// What bounds the result of a job.
const (
	maxLines = 500
	maxLine  = 4 << 10   // bytes
	maxSaid  = 256 << 10 // bytes of all lines
)

// say adds a line to the result.
func (j *job) say(line string) {
	line = beginning(line, maxLine)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.full {
		return
	}
	if j.full = len(j.lines) == maxLines || j.said+len(line) > maxSaid; j.full {
		line = "further lines are left out"
	}
	j.lines, j.said = append(j.lines, line), j.said+len(line)
}

func (j *job) running() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ended.IsZero()
}

// end keeps the outcome.
func (j *job) end(err error) {
	if err != nil && len(err.Error()) > maxLine { // of what was sent
		err = errors.New(beginning(err.Error(), maxLine))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ended, j.err = time.Now(), err
}

func (j *job) state() jobState {
	j.mu.Lock()
	defer j.mu.Unlock()
	return jobState{
		ID: j.ID, Title: j.Title, Operator: j.Operator, Reason: j.Reason, Back: j.Back, Note: j.note, Began: j.Began, Ended: j.ended,
		Done: j.done, Total: j.total, Lines: append([]string(nil), j.lines...), Links: append([]jobLink(nil), j.links...), Next: j.next, Err: j.err,
		Partly:  errors.As(j.err, new(*operator.KeptError)),
		Running: j.ended.IsZero(), Cancelled: j.halted,
	}
}

// jobs are the actions of this instance.
type jobs struct {
	mu   sync.Mutex
	byID map[string]*job
	list []*job // oldest first
}

func (s *jobs) get(id string) *job {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byID[id]
}

func (s *jobs) add(j *job) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID == nil {
		s.byID = make(map[string]*job)
	}
	if len(s.list) >= maxJobs {
		i := slices.IndexFunc(s.list, func(j *job) bool { return !j.running() })
		if i < 0 {
			return errors.New("too many actions are under way: wait until one has ended, or cancel one")
		}
		delete(s.byID, s.list[i].ID)
		s.list = slices.Delete(s.list, i, i+1)
	}
	s.byID[j.ID], s.list = j, append(s.list, j)
	return nil
}

// halt cancels what runs.
func (s *jobs) halt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range s.list {
		j.cancel()
	}
}

// signRoutes adds the routes to sign in and out.
func (c *Console) signRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET "+Root+"sign-in/", func(w http.ResponseWriter, r *http.Request) { c.showSignIn(w, r, http.StatusOK, nil) })
	mux.HandleFunc("POST "+Root+"sign-in/", func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxSignIn)
		if err := c.guard.signIn(w, r); err != nil {
			c.log.Warn("sign-in refused", "err", err)
			c.showSignIn(w, r, http.StatusForbidden, err)
			return
		}
		http.Redirect(w, r, c.root, http.StatusSeeOther)
	})
	mux.HandleFunc("POST "+Root+"sign-out/", func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		if _, err := c.guard.allow(r); err != nil {
			c.fail(w, r, http.StatusForbidden, err)
			return
		}
		c.guard.signOut(w)
		http.Redirect(w, r, c.root, http.StatusSeeOther)
	})
}

// actionRoutes adds the routes of operators.
func (c *Console) actionRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST "+Root+"actions/{name}", c.act)
	mux.HandleFunc("POST "+Root+"cancel/{id}", c.cancelJob)
}

func (c *Console) showSignIn(w http.ResponseWriter, r *http.Request, status int, problem error) {
	f := c.frame(w, r, "Sign in to act", "")
	f.Parts = []part{{"sign-in", c.html("sign-in", map[string]any{"Problem": problem, "CanAct": c.guard.open() && c.guard.hasToken()})}}
	c.render(w, status, f)
}

// act starts an action and leads to its page.
func (c *Console) act(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	who, err := c.guard.allow(r)
	if err != nil {
		c.log.Warn("action refused", "action", r.PathValue("name"), "err", err)
		c.fail(w, r, http.StatusForbidden, err)
		return
	}
	a, ok := c.actions()[r.PathValue("name")]
	if !ok {
		c.fail(w, r, http.StatusNotFound, errors.New("there is no such action"))
		return
	}
	reason := strings.TrimSpace(r.PostFormValue("reason"))
	switch {
	case a.reads:
	case reason == "":
		err = errNoReason
	case len(reason) > maxReason:
		err = errors.New("the reason is too long")
	case r.PostFormValue("confirmed") != "yes":
		err = errUnconfirm
	}
	var title string
	var run func(ctx context.Context, f *operator.Fleet, j *job) error
	if err == nil {
		title, run, err = a.start(r)
	}
	if err != nil {
		c.fail(w, r, http.StatusBadRequest, err)
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), jobFor) // it outlives the request
	title, reason = beginning(title, maxTitle), beginning(reason, maxReason)       // one that reads needs no reason
	j := &job{ID: rand.Text(), Title: title, Operator: who, Reason: reason, Back: a.back(r, c.root), Began: time.Now(), root: c.root, cancel: cancel}
	if err := c.jobs.add(j); err != nil {
		cancel()
		c.fail(w, r, http.StatusServiceUnavailable, err)
		return
	}
	c.log.Info("action started", "action", r.PathValue("name"), "operator", who, "reason", reason)
	go func() {
		defer cancel()
		err := c.with(func(f *operator.Fleet) error {
			f = f.As(who)
			if !a.reads {
				if err := f.Intend(ctx, "console "+r.PathValue("name"), title, reason); err != nil {
					return fmt.Errorf("nothing was done, since the audit cannot be written: %w", err)
				}
			}
			return run(ctx, f, j)
		})
		if !a.reads {
			c.forget()
		}
		j.end(err)
		c.log.Info("action ended", "action", r.PathValue("name"), "operator", who, "err", err)
	}()
	http.Redirect(w, r, c.root+"jobs/?id="+j.ID, http.StatusSeeOther)
}

// back returns the page that a form came from, with what it keeps of it.
func (a action) back(r *http.Request, root string) string {
	page, err := url.Parse(r.PostFormValue("back"))
	if err != nil || page.IsAbs() || page.Host != "" || !strings.HasPrefix(page.EscapedPath(), root) {
		return root
	}
	q := page.Query()
	for field, name := range a.keeps {
		if value := r.PostFormValue(field); value != "" && len(value) <= maxKept {
			q.Set(name, value)
		} else {
			q.Del(name)
		}
	}
	page.RawQuery = q.Encode()
	if address := page.String(); len(address) <= maxBack {
		return strings.Clone(address)
	}
	return root
}

const (
	maxKept = 500      // bytes that an address keeps of a field
	maxBack = 16 << 10 // bytes of an address
)

// cancelJob ends an action.
func (c *Console) cancelJob(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if _, err := c.guard.allow(r); err != nil {
		c.fail(w, r, http.StatusForbidden, err)
		return
	}
	j := c.jobs.get(r.PathValue("id"))
	if j == nil {
		c.fail(w, r, http.StatusNotFound, errNoJob)
		return
	}
	j.mu.Lock()
	j.halted = true
	j.mu.Unlock()
	j.cancel()
	http.Redirect(w, r, c.root+"jobs/?id="+j.ID, http.StatusSeeOther)
}

var errNoJob = errors.New("this instance knows no such action: another one runs it, or it ended long ago")

func (c *Console) showJob(_ context.Context, r *http.Request) (any, error) {
	j := c.jobs.get(r.URL.Query().Get("id"))
	if j == nil {
		return jobState{Title: "unknown action", Err: errNoJob}, nil
	}
	s := j.state()
	if c.guard.operator(r) != "" {
		_, s.Token = c.guard.session(nil, r)
	}
	return s, nil
}

// actions lists what operators can do.
func (c *Console) actions() map[string]action {
	all := make(map[string]action)
	maps.Copy(all, c.letterActions())
	maps.Copy(all, c.requestActions())
	maps.Copy(all, holdActions())
	return all
}
