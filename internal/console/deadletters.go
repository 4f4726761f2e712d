package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
)

const (
	// groupsFresh is how long the groups of dead letters are reused: they are
	// counted by reading all of them.
	groupsFresh = 5 * time.Second
	// scanFor bounds reading all dead letters.
	scanFor = 2 * time.Minute
	// shownLetters is the number of dead letters of one list.
	shownLetters = 50
	// canary is the number of dead letters that are replayed first.
	canary = 10
	// replayRate is the maximum number of dead letters replayed per second, and
	// pauseAt the backlog at which a replay pauses; as the command has them.
	replayRate = 200
	pauseAt    = 10_000
)

// groupsOf is the dead letters by failure.
type groupsOf struct {
	List       []*operator.FailureGroup
	Unanswered error
}

// total returns the number of dead letters.
func (g groupsOf) Total() (n int) {
	for _, x := range g.List {
		n += x.Count
	}
	return n
}

// selections caches lists by their filter, a few at a time.
type selections[T any] struct {
	turn lane // of their questions

	mu   sync.Mutex
	byID map[string]*cached[T]
	used []string // the one last asked for at the end
}

// maxSelections bounds what is remembered.
const maxSelections = 16

func (s *selections[T]) get(id string, fresh, bound time.Duration, ask func(ctx context.Context) (T, error)) *cached[T] {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used = append(slices.DeleteFunc(s.used, func(x string) bool { return x == id }), id)
	if c := s.byID[id]; c != nil {
		return c
	}
	if s.byID == nil {
		s.byID = make(map[string]*cached[T])
	}
	if len(s.used) > maxSelections {
		s.byID[s.used[0]].stop()
		delete(s.byID, s.used[0])
		s.used = s.used[1:]
	}
	c := newCached(fresh, ask)
	c.bound, c.turn = bound, s.turn
	s.byID[id] = c
	return c
}

// forget has everything asked again, since an action changed it.
func (s *selections[T]) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.byID {
		c.stop()
	}
	clear(s.byID)
	s.used = nil
}

// forget drops what an action may have changed.
func (c *Console) forget() {
	c.letters.forget()
	c.oneLetter.forget()
	c.counted.forget()
	c.devices.forget()
	c.tracks.forget()
}

// filterOf reads a filter from a form or an address.
func filterOf(v url.Values) operator.Filter {
	f := operator.Filter{Class: v.Get("class"), Device: v.Get("device"), Fingerprint: v.Get("fingerprint"), Text: v.Get("text")}
	f.IDs = strings.Fields(v.Get("ids"))
	return f
}

// lettersData is what the page of dead letters shows.
type lettersData struct {
	view
	Waiting reading[[]store.DeferredRow] // for another attempt
	Groups  reading[groupsOf]
	Filter  operator.Filter
	IDs     string
	Chosen  bool // a filter is set
	List    reading[operator.DeadLetterList]
	Count   reading[int] // that match
	Classes []telemetry.Class
	Export  string // address of what matches as a file
	After   string // the dead letter before this page; "" for the first page
	query   url.Values
	Old     string // as the form had it before a preview
	New     string
	Regexp  bool
	Actor   actor
	Archive bool
}

// actor is who may act on a page.
type actor struct {
	May   bool
	Token string
	Back  string
}

func (c *Console) actor(r *http.Request) actor {
	_, token := c.guard.session(nil, r)
	back := c.root + strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, Root), "events/")
	if r.URL.RawQuery != "" {
		back += "?" + r.URL.RawQuery
	}
	return actor{May: token != "", Token: token, Back: back}
}

func (c *Console) deadLetters(ctx context.Context, r *http.Request) (any, error) {
	q := r.URL.Query()
	f := filterOf(q)
	d := lettersData{view: c.view(ctx, slowest), Filter: f, IDs: strings.Join(f.IDs, " "), Chosen: !f.Empty(), Classes: telemetry.Classes(), Actor: c.actor(r), Export: "export/dead-letters.ndjson"}
	d.Old, d.New, d.Regexp = q.Get("old"), q.Get("new"), q.Get("regexp") != ""
	d.Groups = c.groups.get(ctx)
	d.Waiting = c.deferred.get(ctx)
	if d.Chosen {
		v := url.Values{}
		for _, name := range []string{"class", "device", "fingerprint", "text", "ids"} {
			if q.Get(name) != "" {
				v.Set(name, q.Get(name))
			}
		}
		query := v.Encode()
		d.Export += "?" + query
		d.After, d.query = q.Get("after"), v
		d.List = c.letters.get(query+" "+d.After, 2*time.Second, scanFor, func(ctx context.Context) (list operator.DeadLetterList, err error) {
			err = c.with(func(fl *operator.Fleet) error { list, err = fl.DeadLetters(ctx, f, d.After, shownLetters); return err })
			return list, err
		}).get(ctx)
		if l := d.List.Value; d.List.Known() && d.After == "" && !l.More { // they are counted
			d.Count = reading[int]{len(l.Letters), d.List.At, d.List.Err}
			return d, nil
		}
		d.Count = c.count(query, f).get(ctx)
	}
	return d, nil
}

// count counts the dead letters that match, by reading all of them.
func (c *Console) count(query string, f operator.Filter) *cached[int] {
	return c.counted.get(query, groupsFresh, scanFor, func(ctx context.Context) (n int, err error) {
		err = c.with(func(fl *operator.Fleet) error {
			list, _, err := fl.FailureGroups(ctx, f)
			n = groupsOf{List: list}.Total()
			return err
		})
		return n, err
	})
}

// All returns the number of entries that wait for another attempt.
func (d lettersData) All() int64 { return max(d.Postgres.Value.Deferred, int64(len(d.Waiting.Value))) }

// PageLink returns the page of the list behind a dead letter, below the root; "" is the
// first page.
func (d lettersData) PageLink(after string) string {
	v := maps.Clone(d.query)
	if after != "" {
		v.Set("after", after)
	}
	return "dead-letters/?" + v.Encode() + "#letter-list"
}

// PageSize returns the number of dead letters of a page.
func (lettersData) PageSize() int { return shownLetters }

// Next returns the last dead letter of a page that more follow; "" if none do.
func (d lettersData) Next() string {
	if l := d.List.Value; l.More && len(l.Letters) > 0 {
		return l.Letters[len(l.Letters)-1].ID
	}
	return ""
}

// EntryLink returns the page of such an entry, below the root.
func (lettersData) EntryLink(id string) string {
	return "dead-letters/deferred/?" + url.Values{"entry": {id}}.Encode()
}

// deferredData is what the page of an entry that waits for another attempt shows.
type deferredData struct {
	view
	Entry reading[operator.DeferredEntry]
}

// Fields returns the fields, and whether the failure is in them.
func (d deferredData) Fields() []shownField {
	return shownFields(d.Entry.Value.Fields, plain(d.Entry.Value.Field))
}

func (c *Console) deferredEntry(ctx context.Context, r *http.Request) (any, error) {
	id := r.URL.Query().Get("entry")
	d := deferredData{view: c.view(ctx, slowest)}
	d.Entry = c.oneDeferred.get(id, time.Second, askFor, func(ctx context.Context) (e operator.DeferredEntry, err error) {
		err = c.with(func(f *operator.Fleet) error { e, err = f.DeferredEntry(ctx, id); return err })
		return e, err
	}).get(ctx)
	return d, nil
}

// Which says what an action is about to act on, at most that many of it; 0 is all.
func (d lettersData) Which(most int) string {
	n, known := d.Count.Value, d.Count.Known() && !d.Count.Stale()
	those := " " + filterWords(d.Filter)
	switch {
	case !known && most > 0:
		return fmt.Sprintf("the %d oldest dead letters", most) + those
	case !known:
		return "all dead letters" + those
	case most > 0 && n > most:
		return fmt.Sprintf("the %d oldest of %s", most, cli.Count(n, "dead letter")) + those
	}
	return cli.Count(n, "dead letter") + those
}

// filterWords says what a filter selects.
func filterWords(f operator.Filter) string {
	var parts []string
	for _, p := range [][2]string{{"of class ", f.Class}, {"of ", f.Fingerprint}, {"of device ", f.Device}, {"that contain ", f.Text}, {"with ID ", strings.Join(f.IDs, " ")}} {
		if p[1] != "" {
			parts = append(parts, p[0]+cutText(200, p[1]))
		}
	}
	return strings.Join(parts, " ")
}

// letterData is what the page of one dead letter shows.
type letterData struct {
	view
	Letter   reading[operator.DeadLetter]
	ID       string
	Actor    actor
	NewField string // as the form had it before a preview
	NewValue string
}

// Fields returns the fields with the pretty form of a payload, and whether the
// failure is in them.
func (d letterData) Fields() []shownField {
	return shownFields(d.Letter.Value.Fields, d.Letter.Value.Field)
}

// EditedFields returns the fields as they would be replayed.
func (d letterData) EditedFields() []shownField {
	return shownFields(d.Letter.Value.Edited, d.Letter.Value.NowField) // judged anew
}

// shownField is a field of an entry on the page.
type shownField struct {
	Name, Value, Raw string
	Base64, Fault    bool
	Lines            []shownLine
}

type shownLine struct {
	Text  string
	Fault bool
}

// longestShown bounds how much of a value is shown.
const longestShown = 64 << 10

func shownFields(fields []operator.Field, fault string) []shownField {
	root, member, _ := strings.Cut(fault, ".")
	var out []shownField
	for _, f := range fields {
		s := shownField{Name: f.Name, Value: f.Value, Raw: f.Value, Base64: f.Base64}
		if len(s.Value) > longestShown {
			s.Value = s.Value[:longestShown] + "…"
		}
		var indented strings.Builder
		if enc := json.RawMessage(f.Value); f.Name == telemetry.FieldPayload && len(f.Value) <= longestShown && json.Valid(enc) {
			var b []byte
			if b, _ = json.MarshalIndent(enc, "", "  "); b != nil {
				indented.Write(b)
			}
			s.Value = indented.String()
		}
		marked := false
		names := []string{member, fault, root}
		for line := range strings.Lines(s.Value) {
			bad := false
			for _, name := range names {
				last := name[strings.LastIndexByte(name, '.')+1:]
				if f.Name == telemetry.FieldPayload && last != "" && strings.HasPrefix(strings.TrimSpace(line), strconv.Quote(last)+":") {
					bad, marked = true, true
				}
			}
			s.Lines = append(s.Lines, shownLine{strings.TrimSuffix(line, "\n"), bad})
		}
		s.Fault = fault != "" && (f.Name == fault || f.Name == root && !marked || f.Name == telemetry.FieldPayload && member == "" && !marked && f.Name == root)
		out = append(out, s)
	}
	return out
}

func (c *Console) deadLetter(ctx context.Context, r *http.Request) (any, error) {
	id := r.URL.Query().Get("id")
	d := letterData{view: c.view(ctx, slowest), ID: id, Actor: c.actor(r), NewField: r.URL.Query().Get("field"), NewValue: r.URL.Query().Get("value")}
	d.Letter = c.oneLetter.get(id, time.Second, askFor, func(ctx context.Context) (l operator.DeadLetter, err error) {
		err = c.with(func(f *operator.Fleet) error { l, err = f.DeadLetter(ctx, id); return err })
		return l, err
	}).get(ctx)
	return d, nil
}

var errExport = errors.New("another export is under way, and there is one at a time: try again later, or use processor dlq export")

// exportLetters writes the selected dead letters as lines of JSON.
func (c *Console) exportLetters(w http.ResponseWriter, r *http.Request) {
	f := filterOf(r.URL.Query())
	if err := f.Check(); err != nil {
		c.fail(w, r, http.StatusBadRequest, err)
		return
	}
	waiting, cancel := context.WithTimeout(r.Context(), maxWait)
	defer cancel()
	leave, ok := c.lanes.exports.enter(waiting)
	if !ok {
		w.Header().Set("Retry-After", "30")
		c.fail(w, r, http.StatusServiceUnavailable, errExport)
		return
	}
	defer leave()
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Content-Disposition", `attachment; filename="dead-letters.ndjson"`)
	out := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	err := c.with(func(fl *operator.Fleet) error {
		_, _, err := fl.ExportDeadLetters(r.Context(), f, func(l operator.DeadLetter) error {
			if err := out.SetWriteDeadline(time.Now().Add(writeFor)); err != nil {
				return err
			}
			return enc.Encode(l)
		})
		return err
	})
	if err != nil {
		c.log.Warn("export of dead letters ended early", "err", err)
		panic(http.ErrAbortHandler) // the client must not take a part for the whole
	}
}

// letterActions are what operators do with dead letters.
func (c *Console) letterActions() map[string]action {
	type run = func(ctx context.Context, f *operator.Fleet, j *job) error
	retry := func(title string, o operator.RetryOptions) func(r *http.Request) (string, run, error) {
		return func(r *http.Request) (string, run, error) {
			by := filterOf(r.PostForm)
			if by.Empty() && r.PostFormValue("all") != "yes" {
				return "", nil, operator.ErrChooseAll
			}
			if err := by.Check(); err != nil {
				return "", nil, err
			}
			return title + " " + by.String(), func(ctx context.Context, f *operator.Fleet, j *job) error {
				o := o
				o.PerSecond, o.PauseAt = replayRate, pauseAt
				o.Progress = func(done, all int) { j.progress(done, all, "") }
				o.Waiting = func(backlog string) {
					j.progress(0, 0, "paused while the backlog is "+backlog)
				}
				out, err := f.RetryDeadLetters(ctx, by, o)
				return tellRetry(ctx, f, j, by, out, o.DryRun, err)
			}, nil
		}
	}
	return map[string]action{
		"dlq-dry-run": {reads: true, start: retry("Dry run of", operator.RetryOptions{DryRun: true, Limit: 1000})},
		"dlq-canary":  {start: retry("Canary of 10 of", operator.RetryOptions{Limit: canary})},
		"dlq-retry":   {start: retry("Replay of", operator.RetryOptions{})},
		"dlq-drop": {start: func(r *http.Request) (string, run, error) {
			by := filterOf(r.PostForm)
			count, err := strconv.Atoi(r.PostFormValue("count"))
			if by.Empty() || err != nil {
				return "", nil, errors.New("choose dead letters by a filter, and say how many they are")
			}
			return "Drop " + by.String(), func(ctx context.Context, f *operator.Fleet, j *job) error {
				out, err := f.DropDeadLetters(ctx, by, count)
				j.progress(out.Dropped, count, "")
				return err
			}, nil
		}},
		"dlq-restore": {start: func(r *http.Request) (string, run, error) {
			by := store.ArchiveFilter{
				IDs: strings.Fields(r.PostFormValue("ids")), Class: r.PostFormValue("class"), Device: r.PostFormValue("device"),
				Fingerprint: r.PostFormValue("fingerprint"), OpenOnly: true,
			}
			if len(by.IDs) == 0 && by.Class+by.Device+by.Fingerprint == "" {
				return "", nil, operator.ErrChooseAll
			}
			return "Restore dead letters", func(ctx context.Context, f *operator.Fleet, j *job) error {
				list, missing, err := f.RestoreDeadLetters(ctx, by, operator.RestoreOptions{Progress: func(done, all int) { j.progress(done, all, "") }})
				n := 0
				for _, l := range list {
					if l.Outcome == "restored" {
						n++
					}
					j.say(strings.TrimSpace(l.ID + " " + l.Outcome + " " + l.As))
				}
				for _, id := range missing {
					j.say(id + " is not in the archive, or was replayed")
				}
				j.progress(n, 0, "restored")
				return err
			}, nil
		}},
		"dlq-edit-preview":    {reads: true, start: edit(false, false), keeps: map[string]string{"field": "field", "value": "value"}},
		"dlq-edit":            {start: edit(true, false)},
		"dlq-replace-dry-run": {reads: true, start: replaceText(true), keeps: map[string]string{"old": "old", "new": "new", "regexp": "regexp"}},
		"dlq-replace":         {start: replaceText(false)},
		"dlq-edit-replay":     {start: edit(true, true)},
	}
}

// tellRetry shows the outcome of a replay, and for real ones what became of the
// entries.
func tellRetry(ctx context.Context, f *operator.Fleet, j *job, by operator.Filter, out operator.Retried, dry bool, err error) error {
	outcomes := make(map[string]int)
	var as []string
	for _, l := range out.Letters {
		outcomes[l.Outcome]++
		if l.Outcome == "refused" {
			j.link("edit "+l.ID, "dead-letters/letter/", url.Values{"id": {l.ID}})
		}
		if l.As != "" {
			as = append(as, l.As)
		}
		if len(out.Letters) <= 100 || l.Reason != "" {
			j.say(strings.TrimSpace(l.ID + " " + l.Outcome + " " + l.As + " " + l.Reason))
		}
	}
	j.progress(len(out.Letters), len(out.Letters), outcomeText(outcomes))
	if dry || len(as) == 0 {
		return err
	}
	if len(by.IDs) == 1 && len(out.Letters) == 1 {
		leadOn(ctx, f, j, out.Letters[0])
	}
	waiting, cancel := context.WithTimeout(ctx, fateFor)
	defer cancel()
	last := as[max(0, len(as)-1000):]
	fate, fateErr := f.Fates(waiting, last)
	if fateErr == nil {
		j.say(fmt.Sprintf("of the last %d replayed: %s", len(last), fate))
		for _, text := range fate.Returned {
			j.say("came back: " + text)
		}
		if len(fate.Returned) > 0 && err == nil {
			err = fmt.Errorf("%d came back as dead letters: edit them before you replay more", len(fate.Returned))
		}
	}
	return errors.Join(err, fateErr)
}

// leadOn links from the replay of one dead letter, which is gone now, to its device
// and to the next one.
func leadOn(ctx context.Context, f *operator.Fleet, j *job, l operator.Retry) {
	j.say("replayed as entry " + l.As)
	j.leadBack("dead-letters/")
	if l.Device != "" {
		j.link("device "+l.Device, "devices/", url.Values{"device": {l.Device}})
	}
	alike, err := f.DeadLetters(ctx, operator.Filter{Fingerprint: l.Fingerprint}, "", 1)
	if err == nil && len(alike.Letters) > 0 {
		j.link("next dead letter of "+l.Fingerprint, "dead-letters/letter/", url.Values{"id": {alike.Letters[0].ID}})
	} // without an answer the link to all remains
}

// outcomeText tells how many letters ended how, like "3 refused, 1,000 stored".
func outcomeText(outcomes map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(outcomes)) {
		parts = append(parts, cli.Thousands(int64(outcomes[name]))+" "+name)
	}
	return strings.Join(parts, ", ")
}

// fateFor is how long a replay waits for what becomes of its entries.
const fateFor = 30 * time.Second

// edit changes a field of a dead letter and may replay it, or says what it would change.
func edit(keep, replay bool) func(r *http.Request) (string, func(ctx context.Context, f *operator.Fleet, j *job) error, error) {
	return func(r *http.Request) (string, func(ctx context.Context, f *operator.Fleet, j *job) error, error) {
		id, field, value := r.PostFormValue("id"), r.PostFormValue("field"), strings.ReplaceAll(r.PostFormValue("value"), "\r\n", "\n")
		if field == "" {
			return "", nil, errors.New("name the field to change: one of the entry, or payload.NAME for a member of its payload")
		}
		change := func(fields []string) ([]string, error) { return operator.SetField(fields, field, value) }
		title := "Preview of an edit of " + id
		switch {
		case replay:
			title = "Edit and replay " + id
		case keep:
			title = "Edit " + id
		}
		return title, func(ctx context.Context, f *operator.Fleet, j *job) error {
			ask := f.PreviewEdit
			if keep {
				ask = f.EditDeadLetter
			}
			out, err := ask(ctx, id, change)
			for line := range strings.Lines(out.Diff) {
				j.say(strings.TrimSuffix(line, "\n"))
			}
			if err == nil && out.NowFails != nil {
				j.say("it still does not decode: " + *out.NowFails)
			} else if err == nil {
				j.say("it decodes now")
			}
			if out.Before {
				j.say("nothing was changed: it was edited like this before")
			}
			switch {
			case err == nil && replay:
				by := operator.Filter{IDs: []string{out.ID}}
				var sent operator.Retried
				sent, err = f.RetryDeadLetters(ctx, by, operator.RetryOptions{PerSecond: replayRate, PauseAt: pauseAt})
				return tellRetry(ctx, f, j, by, sent, false, err)
			case err == nil && !keep:
				next := []nextButton{
					{"dlq-edit", "Keep this edit", "Keep this edit of [field] of dead letter " + out.ID + "?", ""},
					{"dlq-edit-replay", "Keep and replay", "Keep this edit of [field] of dead letter " + out.ID + " and replay it?", "primary"},
				}
				if out.Before {
					next = next[1:] // it is kept already
				}
				j.offer(r.PostForm, next...)
			}
			return err
		}, nil
	}
}

// replaceText replaces a text in the payload of all that a filter selects.
func replaceText(dry bool) func(r *http.Request) (string, func(ctx context.Context, f *operator.Fleet, j *job) error, error) {
	return func(r *http.Request) (string, func(ctx context.Context, f *operator.Fleet, j *job) error, error) {
		by := filterOf(r.PostForm)
		if by.Empty() {
			return "", nil, operator.ErrChooseAll
		}
		change := operator.Replacement{Old: r.PostFormValue("old"), New: r.PostFormValue("new"), Regexp: r.PostFormValue("regexp") == "yes"}
		if _, err := change.Replacer(); err != nil {
			return "", nil, err
		}
		title := change.String() + " in dead letters " + by.String()
		if dry {
			title = "Preview: " + title
		}
		return title, func(ctx context.Context, f *operator.Fleet, j *job) error {
			out, err := f.ReplaceInDeadLetters(ctx, by, change, operator.ReplaceOptions{DryRun: dry, Progress: func(done, all int) { j.progress(done, all, "") }})
			for _, e := range out.Samples {
				j.say(e.ID)
				for line := range strings.Lines(e.Diff) {
					j.say("  " + strings.TrimSuffix(line, "\n"))
				}
				if e.NowFails != nil {
					j.say("  still: " + *e.NowFails)
				}
			}
			if out.Edited > 0 {
				j.say(out.String())
			}
			if dry && err == nil {
				those := cli.Count(out.Edited, "dead letter")
				if more := out.Edited - len(out.Samples); more > 0 {
					j.say(fmt.Sprintf("and %s more; the same is done to their payloads", cli.Thousands(int64(more))))
				}
				j.offer(r.PostForm, nextButton{"dlq-replace", "Keep for these " + those, "Replace [old] with [new] in " + those + "?", "primary"})
			} else if err == nil && out.Edited > 0 {
				j.offer(r.PostForm, nextButton{"dlq-retry", "Replay all matching", "Replay all dead letters" + filterWords(by) + "?", "primary"})
			}
			return err
		}, nil
	}
}

// archiveData is what the page of archived dead letters shows.
type archiveData struct {
	view
	Page   reading[operator.Page[store.ArchivedLetter]]
	Filter store.ArchiveFilter
	Actor  actor
}

func (c *Console) archive(ctx context.Context, r *http.Request) (any, error) {
	q := r.URL.Query()
	before, _ := strconv.ParseInt(q.Get("before"), 10, 64) // 0 begins
	d := archiveData{view: c.view(ctx, slowest), Actor: c.actor(r), Filter: store.ArchiveFilter{
		Class: q.Get("class"), Device: q.Get("device"), Fingerprint: q.Get("fingerprint"), OpenOnly: q.Get("open") != "",
	}}
	d.Page = c.archived.get(fmt.Sprintf("%d %q %q %q %v", before, d.Filter.Class, d.Filter.Device, d.Filter.Fingerprint, d.Filter.OpenOnly), time.Second, askFor, func(ctx context.Context) (p operator.Page[store.ArchivedLetter], err error) {
		err = c.with(func(f *operator.Fleet) error { p, err = f.Archived(ctx, d.Filter, before, shownLetters); return err })
		return p, err
	}).get(ctx)
	return d, nil
}
