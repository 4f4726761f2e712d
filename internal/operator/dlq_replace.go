package operator

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Replacement replaces a text in payloads wherever it stands.
type Replacement struct {
	Old, New string
	Regexp   bool // Old is a regular expression of RE2, and New may have $1
}

// String describes it for the audit.
func (r Replacement) String() string {
	kind := "replace"
	if r.Regexp {
		kind = "replace regexp"
	}
	short := func(s string) string { return s[:min(len(s), 200)] }
	return fmt.Sprintf("%s %q with %q", kind, short(r.Old), short(r.New))
}

// Replacer returns the function that replaces, or why there is none. A payload that would
// grow beyond what an entry may be stays as it is.
func (r Replacement) Replacer() (func(string) string, error) {
	if r.Old == "" {
		return nil, fault.Exitf(fault.Config, "say which text to replace")
	}
	if len(r.Old) > maxReplacedText || len(r.New) > maxReplacedText {
		return nil, fault.Exitf(fault.Config, "a text to replace has at most %d bytes, and so has what replaces it", maxReplacedText)
	}
	if !r.Regexp {
		return func(s string) string {
			if len(r.New)*strings.Count(s, r.Old) > maxGrowth {
				return s
			}
			return strings.ReplaceAll(s, r.Old, r.New)
		}, nil
	}
	re, err := regexp.Compile(r.Old)
	if err != nil {
		return nil, fault.Exitf(fault.Config, "%w; the syntax is RE2's", err)
	}
	return func(s string) string {
		// What a $ stands for is part of the payload, all of them together no more than that.
		if len(r.New)*len(re.FindAllStringIndex(s, -1))+strings.Count(r.New, "$")*len(s) > maxGrowth {
			return s
		}
		return re.ReplaceAllString(s, r.New)
	}, nil
}

// ReplaceOptions bound a replacement.
type ReplaceOptions struct {
	DryRun   bool
	Progress func(done, all int) // told after each batch; may be nil
}

// Replaced is what a replacement changed, or would change.
type Replaced struct {
	DryRun   bool     `json:"dry_run"`
	Selected int      `json:"selected"`
	Edited   int      `json:"edited"`  // whose payload has the text
	Decode   int      `json:"decode"`  // of these, afterwards
	Samples  []Edited `json:"samples"` // the first ones
	Missing  []string `json:"-"`
}

const (
	// maxReplaced bounds how many dead letters one replacement edits.
	maxReplaced = 10_000
	// maxReplacedText bounds the two texts, and maxGrowth what is put into a payload, in bytes.
	maxReplacedText = 2000
	maxGrowth       = 1 << 20
	// replaceSamples is the number of differences that are shown.
	replaceSamples = 5
)

// ReplaceInDeadLetters edits the payload of all selected dead letters that contain a
// text, as edited before. The originals and the differences are kept. Interrupted, it
// can be repeated: what has the text no more stays.
func (f *Fleet) ReplaceInDeadLetters(ctx context.Context, by Filter, r Replacement, o ReplaceOptions) (out Replaced, err error) {
	out = Replaced{DryRun: o.DryRun, Samples: []Edited{}}
	replace, err := r.Replacer()
	if err != nil {
		return out, err
	}
	d, s, err := f.selected(ctx, by, !o.DryRun)
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
	if len(list) > maxReplaced {
		return out, fault.Exitf(fault.Finding, "%d dead letters match, and at most %d are edited at a time: choose fewer by a filter", len(list), maxReplaced)
	}
	done := 0
	err = d.letters(ctx, list, func(some []protocol.DLQEntry, gone []ref) error {
		if ctx.Err() != nil {
			return errors.New("interrupted; run it again for the rest")
		}
		if err := d.replaceSome(ctx, some, replace, &out); err != nil {
			return err
		}
		done += len(some) + len(gone)
		if o.Progress != nil {
			o.Progress(done, len(list))
		}
		return nil
	})
	if out.Edited > 0 && !o.DryRun {
		err = errors.Join(err, d.note(ctx, "dlq edit", by.String()+" "+r.String(), out.Edited))
	}
	if err == nil && out.Edited == 0 {
		err = fault.Exitf(fault.Finding, "nothing was changed: no payload of the %d selected has this text", len(list))
	}
	return out, d.explained(err)
}

func (d *deadLetters) replaceSome(ctx context.Context, some []protocol.DLQEntry, replace func(string) string, out *Replaced) error {
	before, err := d.archive.Edited(ctx, idsOf(some))
	if err != nil {
		return err
	}
	var letters []protocol.DLQEntry
	var edits []store.Edit
	var seen Replaced
	for i := range some {
		l := &some[i]
		fields := inEffect(l, before)
		payload, there := (&telemetry.Entry{Fields: fields}).Field(telemetry.FieldPayload)
		changed := replace(payload)
		if !there || changed == payload {
			continue
		}
		fields = with(slices.Clone(fields), telemetry.FieldPayload, changed)
		e := editOf(l, fields)
		edit := Edited{ID: l.ID.String(), Diff: e.Diff}
		seen.Edited++
		if _, fails := d.decode(l, fields); fails != nil {
			edit.NowFails = orNull(fails.Error())
		} else {
			seen.Decode++
		}
		seen.Samples = append(seen.Samples, edit)
		letters, edits = append(letters, *l), append(edits, e)
	}
	if !out.DryRun && len(edits) > 0 {
		if err := d.edit(ctx, letters, edits); err != nil {
			return err
		}
	}
	out.Edited += seen.Edited
	out.Decode += seen.Decode
	out.Samples = append(out.Samples, seen.Samples[:min(len(seen.Samples), replaceSamples-len(out.Samples))]...)
	return nil
}

// String says what was edited, or would be.
func (r *Replaced) String() string {
	if r.DryRun {
		return fmt.Sprintf("%d of %d would be edited, and %d of these decode then; nothing was changed", r.Edited, r.Selected, r.Decode)
	}
	return fmt.Sprintf("%d of %d edited, and %d of these decode now", r.Edited, r.Selected, r.Decode)
}
