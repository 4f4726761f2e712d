package operator

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
)

// DeadLetter is one dead letter.
type DeadLetter struct {
	ID          string    `json:"id"`
	SourceID    string    `json:"source_id"`
	Class       string    `json:"class"`
	Device      string    `json:"device_id"`
	Shard       int       `json:"shard"`
	Error       string    `json:"error"`
	Field       string    `json:"field"`
	Fingerprint string    `json:"fingerprint"`
	Attempts    int       `json:"attempts"`
	FirstFailed time.Time `json:"first_failed_at"`
	LastFailed  time.Time `json:"last_failed_at"`
	Instance    string    `json:"instance"`
	Version     string    `json:"version"`
	FirstSource string    `json:"first_source_id,omitempty"` // of a replay: the entry that failed first
	ReplayOf    string    `json:"replay_of,omitempty"`       // of a replay: the dead letter that was sent again
	IsEdited    *bool     `json:"edited,omitempty"`          // of a list; absent while Postgres is unavailable
	Fields      []Field   `json:"fields,omitempty"`
	Edited      []Field   `json:"edited_fields,omitempty"`
	Record      *Record   `json:"record,omitempty"`
	NowFails    string    `json:"now_fails,omitempty"`
	NowField    string    `json:"-"` // at fault, of what now fails
	Value       string    `json:"-"` // of the field at fault in a list, its beginning; "" if none is, or it has none
}

// Field is a field of an entry: text, or base64 if its bytes are not text.
type Field struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Base64 bool   `json:"base64,omitempty"`
}

// Record is what an entry decodes to. Attributes keep every digit.
type Record struct {
	DeviceID   string          `json:"device_id"`
	Time       time.Time       `json:"ts"`
	Latitude   float64         `json:"latitude"`
	Longitude  float64         `json:"longitude"`
	Attributes json.RawMessage `json:"attributes"`
}

func deadLetterOf(l *protocol.DLQEntry, fields bool) DeadLetter {
	kept := func(s string) string { return s }
	if !fields {
		kept = strings.Clone // not the reply of Redis that it is a part of, with the content of a page
	}
	j := DeadLetter{
		ID: l.ID.String(), SourceID: l.Entry.ID.String(), Class: kept(string(classOf(l))), Device: kept(l.Entry.DeviceID()), Shard: l.Shard,
		Error: kept(l.Error), Field: kept(l.Field), Fingerprint: kept(l.Fingerprint), Attempts: l.Attempts,
		FirstFailed: l.FirstFailed, LastFailed: l.LastFailed, Instance: kept(l.Instance), Version: kept(l.Version),
	}
	if l.Err != nil {
		j.Error = l.Err.Error()
	}
	first, _ := l.Entry.Field(telemetry.FieldReplayOf)
	letter, _ := l.Entry.Field(telemetry.FieldReplayLetter)
	j.FirstSource, j.ReplayOf = kept(first), kept(letter)
	if fields {
		j.Fields = fieldsOf(l.Entry.Fields)
	}
	return j
}

// shownValue bounds what a list keeps of a value, in bytes: it may be a payload of any size.
const shownValue = 200

// valueOf returns the beginning of the value of a field, or of a member of the payload: payload.NAME.
func valueOf(e *telemetry.Entry, field string) string {
	value := wholeValueOf(e, field)
	if len(value) > shownValue {
		value = strings.ToValidUTF8(value[:shownValue], "") + "…"
	}
	return strings.Clone(value) // not the entry it is a part of
}

func wholeValueOf(e *telemetry.Entry, field string) string {
	name, inside := strings.CutPrefix(field, telemetry.FieldPayload+".")
	if !inside {
		value, _ := e.Field(field)
		return value
	}
	payload, _ := e.Field(telemetry.FieldPayload)
	value := json.RawMessage(payload)
	for part := range strings.SplitSeq(name, ".") {
		var members map[string]json.RawMessage
		if json.Unmarshal(value, &members) != nil {
			return "" // it cannot be read, which the error says
		}
		value = members[part]
	}
	return string(value)
}

func fieldsOf(fields []string) []Field {
	list := make([]Field, 0, len(fields)/2)
	for i := 0; i+1 < len(fields); i += 2 {
		f := Field{Name: fields[i], Value: fields[i+1]}
		if !utf8.ValidString(f.Value) {
			f.Value, f.Base64 = base64.StdEncoding.EncodeToString([]byte(f.Value)), true
		}
		list = append(list, f)
	}
	return list
}

// classForeign is shown of what others added to the stream of dead letters. It can be dropped.
const classForeign telemetry.Class = "foreign"

func classOf(l *protocol.DLQEntry) telemetry.Class {
	if l.Err != nil {
		return classForeign
	}
	return l.Class
}

// Filter selects dead letters. The zero value selects all.
type Filter struct {
	IDs         []string // of dead letters or of the original entries
	Class       string
	Device      string
	Fingerprint string
	Text        string // that the error or a field contains
	Since       time.Time
	Until       time.Time
}

// Check returns why the filter is invalid.
func (f *Filter) Check() error {
	if classes := append(slices.Clip(telemetry.Classes()), classForeign); f.Class != "" && !slices.Contains(classes, telemetry.Class(f.Class)) {
		return fault.Exitf(fault.Config, "class %q: want one of %v", f.Class, classes)
	}
	for _, text := range f.IDs {
		if _, err := telemetry.ParseEntryID(text); err != nil {
			return fault.Exit(fault.Config, err)
		}
	}
	return nil
}

// Empty reports whether the filter selects all dead letters.
func (f *Filter) Empty() bool {
	return len(f.IDs) == 0 && f.Class+f.Device+f.Fingerprint+f.Text == "" && f.Since.IsZero() && f.Until.IsZero()
}

// String returns the filter for the audit.
func (f *Filter) String() string {
	var parts []string
	for _, p := range [][2]string{{"class", f.Class}, {"device", f.Device}, {"fingerprint", f.Fingerprint}, {"text", f.Text}} {
		if p[1] != "" {
			parts = append(parts, p[0]+"="+p[1])
		}
	}
	for name, at := range map[string]time.Time{"since": f.Since, "until": f.Until} {
		if !at.IsZero() {
			parts = append(parts, name+"="+at.UTC().Format(time.RFC3339))
		}
	}
	parts = append(parts, f.IDs...)
	if parts == nil {
		return "all"
	}
	slices.Sort(parts)
	text := strings.Join(parts, " ")
	return text[:min(len(text), 1000)]
}

// ErrNoMatch is wrapped by the error of a filter that matches nothing.
var ErrNoMatch = errors.New("no dead letter matches")

// NoMatch returns an error for an empty selection by a filter, which is seldom
// intended; nil without a filter.
func (f *Filter) NoMatch() error {
	if f.Empty() {
		return nil
	}
	return fault.Exitf(fault.Finding, "%w %s; processor dlq stats lists the existing ones", ErrNoMatch, f)
}

// selection is a filter at work.
type selection struct {
	Filter
	ids map[string]bool // normalised; whether a dead letter matched
}

func selectBy(f Filter) (*selection, error) {
	if err := f.Check(); err != nil {
		return nil, err
	}
	s := &selection{Filter: f, ids: make(map[string]bool, len(f.IDs))}
	for _, text := range f.IDs {
		id, err := telemetry.ParseEntryID(text)
		if err != nil {
			return nil, err
		}
		s.ids[id.String()] = false
	}
	return s, nil
}

// missing returns the IDs that nothing matched.
func (s *selection) missing() []string {
	var ids []string
	for id, found := range s.ids {
		if !found {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// named reports whether a dead letter has one of the IDs, if any are given.
func (s *selection) named(l *protocol.DLQEntry) bool {
	if len(s.ids) == 0 {
		return true
	}
	return s.found(l.ID.String(), l.Entry.ID.String())
}

// found notes which of the IDs something has, and reports whether it has one.
func (s *selection) found(ids ...string) (named bool) {
	for _, id := range ids {
		if _, ok := s.ids[id]; ok {
			s.ids[id], named = true, true
		}
	}
	return named
}

func (s *selection) match(l *protocol.DLQEntry) bool {
	at := l.ID.Time()
	return s.named(l) &&
		(s.Class == "" || string(classOf(l)) == s.Class) &&
		(s.Device == "" || l.Entry.DeviceID() == s.Device) &&
		(s.Fingerprint == "" || l.Fingerprint == s.Fingerprint) &&
		(s.Since.IsZero() || !at.Before(s.Since)) && (s.Until.IsZero() || at.Before(s.Until)) &&
		(s.Text == "" || strings.Contains(l.Error, s.Text) ||
			slices.ContainsFunc(l.Entry.Fields, func(field string) bool { return strings.Contains(field, s.Text) }))
}

// deadLetters is what the calls about dead letters work with.
type deadLetters struct {
	*Fleet
	group   *stream.Group
	dead    *stream.DeadLetters
	archive *store.DeadLetters // used without asking whether Postgres answers
}

// selected checks a filter before anything is asked, and returns the dead letters
// with what it selects of them.
func (f *Fleet) selected(ctx context.Context, by Filter, changes bool) (*deadLetters, *selection, error) {
	s, err := selectBy(by)
	if err != nil {
		return nil, nil, err
	}
	d, err := f.deadLetters(ctx, changes)
	return d, s, err
}

// deadLetters needs Redis; for changes Postgres too, see sameFleet.
func (f *Fleet) deadLetters(ctx context.Context, changes bool) (*deadLetters, error) {
	if f.pool == nil {
		return nil, fault.Exitf(fault.Config, "there is no usable POSTGRES_URL")
	}
	var group *stream.Group
	var err error
	if changes {
		group, _, err = f.sameFleet(ctx)
	} else {
		group, err = f.redis(ctx, 1)
	}
	if err != nil {
		return nil, err
	}
	dead, err := stream.NewDeadLetters(f.client, f.where(1), f.cfg.Redis.DLQStream)
	if err != nil {
		return nil, fault.Exit(fault.Config, err)
	}
	return &deadLetters{f, group, dead, store.NewDeadLetters(f.pool, f.scope, f.cfg.Postgres.StatementTimeout)}, nil
}

// each calls see for the selected dead letters, oldest first, until it returns
// false.
func (d *deadLetters) each(ctx context.Context, s *selection, see func(l *protocol.DLQEntry) bool) error {
	return d.eachAfter(ctx, telemetry.EntryID{}, s, see)
}

// eachAfter is each for those with higher IDs.
func (d *deadLetters) eachAfter(ctx context.Context, after telemetry.EntryID, s *selection, see func(l *protocol.DLQEntry) bool) error {
	const page = 200
	for {
		letters, err := d.dead.List(ctx, after, page)
		if err != nil {
			return err
		}
		for i := range letters {
			if s.match(&letters[i]) && !see(&letters[i]) {
				return nil
			}
		}
		if len(letters) == 0 {
			return nil
		}
		after = letters[len(letters)-1].ID
	}
}

// ref identifies a dead letter and its original entry, without its content.
type ref struct{ id, source telemetry.EntryID }

// chosen returns the selected dead letters, in the order of their entries; with foreign those
// that are none, too.
func (d *deadLetters) chosen(ctx context.Context, s *selection, foreign bool) ([]ref, error) {
	var list []ref
	err := d.each(ctx, s, func(l *protocol.DLQEntry) bool {
		if l.Err == nil || foreign {
			list = append(list, ref{l.ID, l.Entry.ID})
		}
		return true
	})
	slices.SortFunc(list, func(a, b ref) int { return a.source.Compare(b.source) })
	return list, err
}

// deadLetterBatch is the number of dead letters in memory at a time.
const deadLetterBatch = 100

// letters calls do with batches of a list's dead letters, in order, and with the
// ones that were removed since the list was made.
func (d *deadLetters) letters(ctx context.Context, list []ref, do func(some []protocol.DLQEntry, gone []ref) error) error {
	for part := range slices.Chunk(list, deadLetterBatch) {
		ids := make([]telemetry.EntryID, len(part))
		for i, r := range part {
			ids[i] = r.id
		}
		some, err := d.dead.Get(ctx, ids)
		if err != nil {
			return err
		}
		var gone []ref
		for _, r := range part {
			if !slices.ContainsFunc(some, func(l protocol.DLQEntry) bool { return l.ID == r.id }) {
				gone = append(gone, r)
			}
		}
		if err := do(some, gone); err != nil {
			return err
		}
	}
	return nil
}

// edits returns which dead letters were edited, and an error while Postgres is
// unavailable, since dead letters can be listed without it.
func (d *deadLetters) edits(ctx context.Context, ids []telemetry.EntryID) (map[telemetry.EntryID]bool, error) {
	edited := make(map[telemetry.EntryID]bool)
	for part := range slices.Chunk(ids, 1000) {
		some, err := d.archive.WhichEdited(ctx, part)
		if err != nil {
			return nil, d.explained(err)
		}
		for _, id := range some {
			edited[id] = true
		}
	}
	return edited, nil
}

// decode returns the record that a dead letter decodes to.
func (d *deadLetters) decode(l *protocol.DLQEntry, edited []string) (telemetry.Record, error) {
	e := telemetry.Entry{ID: l.Entry.ID, Fields: stream.ReplayFields(&l.DeadLetter, l.ID, edited)}
	var r telemetry.Record
	err := d.decoder.Decode(&e, &r)
	return r, err
}

// note records the audit, even if the call is being interrupted.
func (d *deadLetters) note(ctx context.Context, action, which string, count int) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	audit := store.NewAudit(d.pool, d.cfg.Postgres.StatementTimeout)
	return d.explained(audit.Note(ctx, d.by, action, d.dead.Stream(), count, map[string]any{"filter": which, "group": d.scope.Group}))
}

// DeadLetterList is a part of the dead letters, oldest first.
type DeadLetterList struct {
	Letters []DeadLetter
	More    bool     // of what the filter selects
	Missing []string // IDs of the filter that no dead letter has; of a whole list

	// Unanswered says why it is unknown which were edited; nil if it is known.
	Unanswered error
}

// DeadLetters lists dead letters with IDs above after, at most limit; "" is from the
// oldest. It needs Redis; without Postgres it is unknown which were edited.
func (f *Fleet) DeadLetters(ctx context.Context, by Filter, after string, limit int) (DeadLetterList, error) {
	out := DeadLetterList{Letters: []DeadLetter{}}
	d, s, err := f.selected(ctx, by, false)
	if err != nil {
		return out, err
	}
	var from telemetry.EntryID
	if after != "" {
		if from, err = telemetry.ParseEntryID(after); err != nil {
			return out, fault.Exitf(fault.Config, "page of dead letters: %w; begin at the first one", err)
		}
	}
	var ids []telemetry.EntryID
	err = d.eachAfter(ctx, from, s, func(l *protocol.DLQEntry) bool {
		if out.More = len(out.Letters) == limit; !out.More {
			j := deadLetterOf(l, false)
			j.Value = valueOf(&l.Entry, l.Field)
			out.Letters, ids = append(out.Letters, j), append(ids, l.ID)
		}
		return !out.More
	})
	if err != nil {
		return out, err
	}
	edited, err := d.edits(ctx, ids)
	out.Unanswered = err
	for i, id := range ids {
		if err == nil {
			out.Letters[i].IsEdited = new(edited[id])
		}
	}
	if !out.More && after == "" {
		out.Missing = s.missing()
	}
	return out, nil
}

// DeadLetter returns one dead letter with its fields and what it decodes to. id is
// that of the dead letter or of the original entry. It needs both servers.
func (f *Fleet) DeadLetter(ctx context.Context, id string) (DeadLetter, error) {
	d, err := f.deadLetters(ctx, false)
	if err != nil {
		return DeadLetter{}, err
	}
	l, err := d.one(ctx, id)
	if err != nil {
		return DeadLetter{}, err
	}
	edited, err := d.archive.Edited(ctx, []telemetry.EntryID{l.ID})
	if err != nil {
		return DeadLetter{}, d.explained(err)
	}
	j := deadLetterOf(l, true)
	if e := edited[l.ID]; e != nil {
		j.Edited = fieldsOf(e)
	}
	if r, err := d.decode(l, edited[l.ID]); err != nil {
		j.NowFails = err.Error()
		var wrong *telemetry.DecodeError
		if errors.As(err, &wrong) {
			j.NowField = wrong.Field
		}
	} else {
		j.Record = &Record{r.DeviceID, r.Time(), r.Latitude, r.Longitude, json.RawMessage(r.Attributes)}
	}
	return j, nil
}

// one returns the dead letter with an ID.
func (d *deadLetters) one(ctx context.Context, id string) (*protocol.DLQEntry, error) {
	s, err := selectBy(Filter{IDs: []string{id}})
	if err != nil {
		return nil, err
	}
	exact, err := telemetry.ParseEntryID(id)
	if err != nil {
		return nil, err
	}
	// Looked up directly before all are searched for the original entry.
	list, err := d.dead.Get(ctx, []telemetry.EntryID{exact})
	if err != nil {
		return nil, err
	}
	if len(list) > 0 {
		return &list[0], nil
	}
	var found *protocol.DLQEntry
	err = d.each(ctx, s, func(l *protocol.DLQEntry) bool {
		found = l
		return false
	})
	if err == nil && found == nil {
		err = fmt.Errorf("no dead letter has the ID %s, nor was it the entry %s; see processor dlq list", id, id)
	}
	return found, err
}

// FailureGroup is the dead letters with the same failure.
type FailureGroup struct {
	Fingerprint string    `json:"fingerprint"`
	Class       string    `json:"class"`
	Count       int       `json:"count"`
	Devices     int       `json:"devices"`
	Edited      *int      `json:"edited"` // null while Postgres is unavailable
	First       time.Time `json:"first"`
	Last        time.Time `json:"last"`
	Example     string    `json:"example"`
	Value       string    `json:"-"` // at fault in the example
}

// FailureGroups counts the selected dead letters by failure, the largest first.
// The second result says why the edits are unknown; nil if they are known.
func (f *Fleet) FailureGroups(ctx context.Context, by Filter) (list []*FailureGroup, unanswered, err error) {
	d, s, err := f.selected(ctx, by, false)
	if err != nil {
		return nil, nil, err
	}
	groups := make(map[string]*FailureGroup)
	groupOf := make(map[telemetry.EntryID]*FailureGroup)
	var ids []telemetry.EntryID
	devices := make(map[[2]string]bool)
	err = d.each(ctx, s, func(l *protocol.DLQEntry) bool {
		j := deadLetterOf(l, false)
		g := groups[j.Fingerprint]
		if g == nil {
			g = &FailureGroup{Fingerprint: j.Fingerprint, Class: j.Class, First: l.ID.Time(), Example: j.ID, Value: valueOf(&l.Entry, l.Field)}
			groups[j.Fingerprint] = g
		}
		g.Count++
		g.Last = l.ID.Time()
		groupOf[l.ID], ids = g, append(ids, l.ID)
		if d := [2]string{g.Fingerprint, j.Device}; !devices[d] {
			devices[d] = true
			g.Devices++
		}
		return true
	})
	if err != nil {
		return nil, nil, err
	}
	edited, unanswered := d.edits(ctx, ids)
	list = make([]*FailureGroup, 0, len(groups))
	for _, g := range groups {
		if unanswered == nil {
			g.Edited = new(int)
		}
		list = append(list, g)
	}
	for id := range edited {
		*groupOf[id].Edited++
	}
	slices.SortFunc(list, func(a, b *FailureGroup) int { return b.Count - a.Count })
	return list, unanswered, nil
}

// ExportDeadLetters calls write with each selected dead letter, fields included,
// until it returns an error; the second result is the IDs that nothing has.
func (f *Fleet) ExportDeadLetters(ctx context.Context, by Filter, write func(DeadLetter) error) (written int, missing []string, err error) {
	d, s, err := f.selected(ctx, by, false)
	if err != nil {
		return 0, nil, err
	}
	var failed error
	err = d.each(ctx, s, func(l *protocol.DLQEntry) bool {
		failed = write(deadLetterOf(l, true))
		written++
		return failed == nil
	})
	return written, s.missing(), errors.Join(err, failed)
}

// ErrChooseAll rejects a change of all dead letters that is not said to be meant.
var ErrChooseAll = errors.New("specify IDs, a filter or --all")

// Dropped is the outcome of a removal.
type Dropped struct {
	Dropped int      `json:"dropped"`
	Missing []string `json:"-"`
}

// DropDeadLetters removes the selected dead letters; a copy stays in
// processor.dead_letters. confirm must be how many they are.
func (f *Fleet) DropDeadLetters(ctx context.Context, by Filter, confirm int) (out Dropped, err error) {
	d, s, err := f.selected(ctx, by, true)
	if err != nil {
		return out, err
	}
	list, err := d.chosen(ctx, s, true)
	if err != nil {
		return out, err
	}
	out.Missing = s.missing()
	if len(list) == 0 && (confirm <= 0 || !by.Empty()) {
		return out, by.NoMatch()
	}
	if confirm != len(list) {
		return out, fault.Exitf(fault.Finding, "%d dead letters match; repeat with --confirm %d", len(list), len(list))
	}
	err = d.letters(ctx, list, func(some []protocol.DLQEntry, _ []ref) error {
		if err := d.archive.Export(ctx, some, d.by); err != nil {
			return err
		}
		if err := d.archive.Dropped(ctx, some); err != nil {
			return err
		}
		n, err := d.dead.Remove(ctx, idsOf(some))
		out.Dropped += n
		return err
	})
	if auditErr := d.note(ctx, "dlq drop", by.String(), out.Dropped); err == nil {
		err = auditErr
	}
	return out, d.explained(err)
}

func idsOf(list []protocol.DLQEntry) []telemetry.EntryID {
	ids := make([]telemetry.EntryID, len(list))
	for i := range list {
		ids[i] = list[i].ID
	}
	return ids
}
