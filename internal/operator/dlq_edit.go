package operator

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Edited is the outcome of the edit of one dead letter.
type Edited struct {
	ID       string  `json:"id"`
	Diff     string  `json:"diff"`
	NowFails *string `json:"now_fails"` // why it still does not decode; null if it does
	Before   bool    `json:"before"`    // it was edited like this before: nothing was changed
}

// EditDeadLetter changes what a dead letter is replayed as. change gets the fields
// of the entry, as edited before, and returns the new ones. The original and the
// difference are kept; the original fields take the edits before back.
func (f *Fleet) EditDeadLetter(ctx context.Context, id string, change func(fields []string) ([]string, error)) (out Edited, err error) {
	return f.editDeadLetter(ctx, id, change, true)
}

// PreviewEdit returns what EditDeadLetter would do.
func (f *Fleet) PreviewEdit(ctx context.Context, id string, change func(fields []string) ([]string, error)) (Edited, error) {
	return f.editDeadLetter(ctx, id, change, false)
}

func (f *Fleet) editDeadLetter(ctx context.Context, id string, change func(fields []string) ([]string, error), keep bool) (out Edited, err error) {
	d, err := f.deadLetters(ctx, keep)
	if err != nil {
		return out, err
	}
	l, err := d.one(ctx, id)
	if err != nil {
		return out, err
	}
	before, err := d.archive.Edited(ctx, []telemetry.EntryID{l.ID})
	if err != nil {
		return out, d.explained(err)
	}
	fields, err := change(slices.Clone(inEffect(l, before)))
	if err != nil {
		return out, err
	}
	e := editOf(l, fields)
	out.ID, out.Diff = l.ID.String(), e.Diff
	if _, fails := d.decode(l, fields); fails != nil {
		out.NowFails = orNull(fails.Error())
	}
	if slices.Equal(fields, inEffect(l, before)) {
		if out.Before = before[l.ID] != nil; out.Before {
			return out, nil
		}
		return out, fault.Exitf(fault.Finding, "nothing was changed")
	}
	if keep {
		if err := d.edit(ctx, []protocol.DLQEntry{*l}, []store.Edit{e}); err != nil {
			return out, d.explained(err)
		}
		if err := d.note(ctx, "dlq edit", out.ID, 1); err != nil {
			return out, err
		}
	}
	return out, nil
}

// SetField returns fields with one of them changed: a field of the entry, or with
// payload.NAME a member of its payload, whose value is JSON. All other text of the
// payload stays as it is, every digit of it.
func SetField(fields []string, name, value string) ([]string, error) {
	member, inside := strings.CutPrefix(name, telemetry.FieldPayload+".")
	if !inside {
		return with(fields, name, value), nil
	}
	payload, _ := (&telemetry.Entry{Fields: fields}).Field(telemetry.FieldPayload)
	changed, err := setMember(json.RawMessage(payload), strings.Split(member, "."), json.RawMessage(value))
	if err != nil {
		return nil, err
	}
	return with(fields, telemetry.FieldPayload, string(changed)), nil
}

// inEffect returns the fields that a dead letter is replayed with.
func inEffect(l *protocol.DLQEntry, edited map[telemetry.EntryID][]string) []string {
	if e := edited[l.ID]; e != nil {
		return e
	}
	return l.Entry.Fields
}

// editOf returns the edit that has a dead letter replayed with those fields.
func editOf(l *protocol.DLQEntry, fields []string) store.Edit {
	if slices.Equal(fields, l.Entry.Fields) {
		return store.Edit{ID: l.ID, Diff: "~ as it came"}
	}
	return store.Edit{ID: l.ID, Fields: fields, Diff: difference(l.Entry.Fields, fields)}
}

// edit stores the originals and the edited fields.
func (d *deadLetters) edit(ctx context.Context, letters []protocol.DLQEntry, edits []store.Edit) error {
	if err := d.archive.Export(ctx, letters, d.by); err != nil {
		return err
	}
	return d.archive.Edit(ctx, edits, d.by)
}

// EditOutcome is the outcome of one line of edited dead letters.
type EditOutcome struct {
	ID       string `json:"id"`
	Outcome  string `json:"outcome"` // edited, unchanged, gone
	NowFails string `json:"now_fails,omitempty"`
	Edited   bool   `json:"edited,omitempty"` // unchanged with the original fields: an edit before stays
}

// EditDeadLetters edits many: lines as ExportDeadLetters gives them, with changed
// fields; of the other members only the ID is read. A line with the original fields was
// not touched: edits before stay. source is named in the audit.
func (f *Fleet) EditDeadLetters(ctx context.Context, r io.Reader, source string) (report []EditOutcome, err error) {
	d, err := f.deadLetters(ctx, true)
	if err != nil {
		return nil, err
	}
	report = []EditOutcome{}
	edited := 0
	lines := json.NewDecoder(r)
	for more := true; more && err == nil; {
		var page []DeadLetter
		if page, more, err = nextDeadLetters(lines); err == nil {
			err = d.editSome(ctx, page, func(line EditOutcome) {
				report = append(report, line)
				if line.Outcome == "edited" {
					edited++
				}
			})
		}
	}
	if edited > 0 {
		if noteErr := d.note(ctx, "dlq edit", "text=fixed in "+source, edited); err == nil {
			err = noteErr
		}
	}
	return report, d.explained(err)
}

// TakenBack is how many edits were taken back.
type TakenBack struct {
	Selected  int      `json:"selected"`
	TakenBack int      `json:"taken_back"`
	Missing   []string `json:"-"`
}

// TakeBackEdits has the selected dead letters replayed as they came.
func (f *Fleet) TakeBackEdits(ctx context.Context, by Filter) (out TakenBack, err error) {
	d, s, err := f.selected(ctx, by, true)
	if err != nil {
		return out, err
	}
	list, err := d.chosen(ctx, s, false)
	if err != nil {
		return out, err
	}
	if out.Selected, out.Missing = len(list), s.missing(); len(list) == 0 {
		return out, by.NoMatch()
	}
	for part := range slices.Chunk(list, deadLetterBatch) {
		ids := make([]telemetry.EntryID, len(part))
		for i, r := range part {
			ids[i] = r.id
		}
		if ids, err = d.archive.WhichEdited(ctx, ids); err != nil {
			break
		}
		edits := make([]store.Edit, len(ids))
		for i, id := range ids {
			edits[i].ID = id
		}
		if err = d.archive.Edit(ctx, edits, d.by); err != nil {
			break
		}
		out.TakenBack += len(ids)
	}
	if out.TakenBack > 0 {
		err = errors.Join(err, d.note(ctx, "dlq edit", by.String()+" taken back", out.TakenBack))
	}
	if err == nil && out.TakenBack == 0 {
		err = fault.Exitf(fault.Finding, "nothing was changed: none of the %d selected is edited", len(list))
	}
	return out, d.explained(err)
}

// nextDeadLetters reads a page of lines that dlq export wrote.
func nextDeadLetters(lines *json.Decoder) (page []DeadLetter, more bool, err error) {
	for len(page) < deadLetterBatch {
		var l DeadLetter
		err := lines.Decode(&l)
		if errors.Is(err, io.EOF) {
			return page, false, nil
		}
		if err != nil {
			return nil, false, fmt.Errorf("read edited dead letters: %w", err)
		}
		page = append(page, l)
	}
	return page, true, nil
}

func (d *deadLetters) editSome(ctx context.Context, page []DeadLetter, tell func(EditOutcome)) error {
	ids := make([]telemetry.EntryID, len(page))
	for i, l := range page {
		var err error
		if ids[i], err = telemetry.ParseEntryID(l.ID); err != nil {
			return fmt.Errorf("read edited dead letters: %w", err)
		}
	}
	found, err := d.dead.Get(ctx, ids)
	if err != nil {
		return err
	}
	there := make(map[telemetry.EntryID]*protocol.DLQEntry, len(found))
	for i := range found {
		if found[i].Err == nil {
			there[found[i].ID] = &found[i]
		}
	}
	before, err := d.archive.Edited(ctx, idsOf(found))
	if err != nil {
		return err
	}
	report := make([]EditOutcome, len(page))
	var letters []protocol.DLQEntry
	var edits []store.Edit
	for i := range page {
		fields, err := plainFields(page[i].Fields)
		if err != nil {
			return fmt.Errorf("read edited dead letter %s: %w", page[i].ID, err)
		}
		l := there[ids[i]]
		report[i] = EditOutcome{ID: page[i].ID, Outcome: "edited"}
		switch {
		case l == nil:
			report[i].Outcome = "gone"
		case slices.Equal(fields, l.Entry.Fields), slices.Equal(fields, before[l.ID]):
			report[i].Outcome = "unchanged"
			report[i].Edited = before[l.ID] != nil && !slices.Equal(fields, before[l.ID])
		default:
			if _, err := d.decode(l, fields); err != nil {
				report[i].NowFails = err.Error()
			}
			letters, edits = append(letters, *l), append(edits, editOf(l, fields))
			before[l.ID] = fields // of lines of the same letter the last one wins
		}
	}
	if err := d.edit(ctx, letters, edits); err != nil {
		return err
	}
	for _, line := range report {
		tell(line)
	}
	return nil
}

// plainFields is the inverse of fieldsOf.
func plainFields(list []Field) ([]string, error) {
	if len(list) == 0 {
		return nil, errors.New("it has no fields")
	}
	fields := make([]string, 0, 2*len(list))
	for _, f := range list {
		value := f.Value
		if f.Base64 {
			b, err := base64.StdEncoding.DecodeString(value)
			if err != nil {
				return nil, fmt.Errorf("field %s: %w", f.Name, err)
			}
			value = string(b)
		}
		fields = append(fields, f.Name, value)
	}
	return fields, nil
}

// with sets the first field of that name, or appends it.
func with(fields []string, name, value string) []string {
	e := telemetry.Entry{Fields: slices.Clone(fields)}
	e.Set(name, value)
	return e.Fields
}
