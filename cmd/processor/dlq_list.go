package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
)

// deadLetterJSON is one dead letter.
type deadLetterJSON struct {
	ID          string      `json:"id"`
	SourceID    string      `json:"source_id"`
	Class       string      `json:"class"`
	Device      string      `json:"device_id"`
	Shard       int         `json:"shard"`
	Error       string      `json:"error"`
	Field       string      `json:"field"`
	Fingerprint string      `json:"fingerprint"`
	Attempts    int         `json:"attempts"`
	FirstFailed time.Time   `json:"first_failed_at"`
	LastFailed  time.Time   `json:"last_failed_at"`
	Instance    string      `json:"instance"`
	Version     string      `json:"version"`
	IsEdited    *bool       `json:"edited,omitempty"` // of dlq list; absent while Postgres is unavailable
	Fields      []fieldJSON `json:"fields,omitempty"`
	Edited      []fieldJSON `json:"edited_fields,omitempty"`
	Record      *recordJSON `json:"record,omitempty"`
	NowFails    string      `json:"now_fails,omitempty"`
}

// fieldJSON is a field of an entry: text, or base64 if its bytes are not text.
type fieldJSON struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Base64 bool   `json:"base64,omitempty"`
}

// recordJSON is what an entry decodes to. Attributes keep every digit.
type recordJSON struct {
	DeviceID   string          `json:"device_id"`
	Time       time.Time       `json:"ts"`
	Latitude   float64         `json:"latitude"`
	Longitude  float64         `json:"longitude"`
	Attributes json.RawMessage `json:"attributes"`
}

func deadLetterOf(l *protocol.DLQEntry, fields bool) deadLetterJSON {
	j := deadLetterJSON{
		ID: l.ID.String(), SourceID: l.Entry.ID.String(), Class: string(l.Class), Device: l.Entry.DeviceID(), Shard: l.Shard,
		Error: l.Error, Field: l.Field, Fingerprint: l.Fingerprint, Attempts: l.Attempts,
		FirstFailed: l.FirstFailed, LastFailed: l.LastFailed, Instance: l.Instance, Version: l.Version,
	}
	if l.Err != nil {
		j.Class, j.Error = "foreign", l.Err.Error()
	}
	if fields {
		j.Fields = fieldsOf(l.Entry.Fields)
	}
	return j
}

func fieldsOf(fields []string) []fieldJSON {
	list := make([]fieldJSON, 0, len(fields)/2)
	for i := 0; i+1 < len(fields); i += 2 {
		f := fieldJSON{Name: fields[i], Value: fields[i+1]}
		if !utf8.ValidString(f.Value) {
			f.Value, f.Base64 = base64.StdEncoding.EncodeToString([]byte(f.Value)), true
		}
		list = append(list, f)
	}
	return list
}

func newDLQListCommand() *cobra.Command {
	var f filter
	var limit int
	cmd := &cobra.Command{
		Use:   "list [ID...]",
		Short: "List dead letters, oldest first",
		Example: `  processor dlq list --class invalid --since 24h
  processor dlq list --text latitude --json`,
		Args: cobra.ArbitraryArgs,
		RunE: withDLQ(func(cmd *cobra.Command, m *dlqClient, args []string) (err error) {
			if err := f.set(cmd, args); err != nil {
				return err
			}
			list := []deadLetterJSON{}
			var ids []telemetry.EntryID
			more := false
			err = m.each(cmd.Context(), &f, func(l *protocol.DLQEntry) bool {
				if more = len(list) == limit; !more {
					list, ids = append(list, deadLetterOf(l, false)), append(ids, l.ID)
				}
				return !more
			})
			if err != nil {
				return err
			}
			edited := m.whichEdited(cmd, ids)
			for i, id := range ids {
				if edited != nil {
					list[i].IsEdited = new(edited[id])
				}
			}
			out := outputOf(cmd)
			if !more { // otherwise not all were read
				defer func() { err = errors.Join(err, f.matched(cmd, len(list))) }()
			}
			return out.Result(list, func() error {
				if len(list) == 0 {
					return nil
				}
				t := cli.NewTable("ID", "CLASS", "DEVICE", "AGE", "TRIES", "EDITED", "ERROR")
				for i, l := range list {
					t.Row(l.ID, l.Class, l.Device, time.Since(ids[i].Time()).Round(time.Second).String(), l.Attempts, editedMark(l.IsEdited), l.Error)
				}
				if err := out.Table(t); err != nil || !more {
					return err
				}
				return out.Line("more exist; see --limit")
			})
		}),
	}
	f.flags(cmd)
	cmd.Flags().IntVar(&limit, "limit", 50, "maximum number to list")
	return cmd
}

// editedMark returns a cell that shows whether a dead letter was edited.
func editedMark(edited *bool) any {
	switch {
	case edited == nil:
		return cli.Colored(nil, cli.Yellow)
	case *edited:
		return cli.Colored("edited", cli.Green)
	}
	return ""
}

// whichEdited returns which dead letters were edited; nil while Postgres is
// unavailable, since dead letters can be listed without it.
func (m *dlqClient) whichEdited(cmd *cobra.Command, ids []telemetry.EntryID) map[telemetry.EntryID]bool {
	edited := make(map[telemetry.EntryID]bool)
	for part := range slices.Chunk(ids, 1000) {
		some, err := m.archive.WhichEdited(cmd.Context(), part)
		if err != nil {
			say(cmd.ErrOrStderr(), "processor: warning: edits are unknown: %v", err)
			return nil
		}
		for _, id := range some {
			edited[id] = true
		}
	}
	return edited
}

func newDLQShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show one dead letter: reason, fields and decoded record",
		Example: `  processor dlq show 1764000000000-0
  processor dlq show 1764000000000-0 --json`,
		Args: cobra.ExactArgs(1),
		RunE: withDLQ(func(cmd *cobra.Command, m *dlqClient, args []string) error {
			l, err := m.one(cmd, args[0])
			if err != nil {
				return err
			}
			edited, err := m.archive.Edited(cmd.Context(), []telemetry.EntryID{l.ID})
			if err != nil {
				return err
			}
			j := deadLetterOf(l, true)
			if e := edited[l.ID]; e != nil {
				j.Edited = fieldsOf(e)
			}
			if r, err := m.decode(l, edited[l.ID]); err != nil {
				j.NowFails = err.Error()
			} else {
				j.Record = &recordJSON{r.DeviceID, r.Time(), r.Latitude, r.Longitude, json.RawMessage(r.Attributes)}
			}
			out := outputOf(cmd)
			return out.Result(j, func() error { return printDeadLetter(out, j) })
		}),
	}
}

// one returns the dead letter with an ID.
func (m *dlqClient) one(cmd *cobra.Command, id string) (*protocol.DLQEntry, error) {
	var f filter
	if err := f.set(cmd, []string{id}); err != nil {
		return nil, err
	}
	exact, err := telemetry.ParseEntryID(id)
	if err != nil {
		return nil, usageError(cmd, err)
	}
	// Looked up directly before all are searched for the original entry.
	list, err := m.dead.Get(cmd.Context(), []telemetry.EntryID{exact})
	if err != nil {
		return nil, err
	}
	if len(list) > 0 {
		return &list[0], nil
	}
	var found *protocol.DLQEntry
	err = m.each(cmd.Context(), &f, func(l *protocol.DLQEntry) bool {
		found = l
		return false
	})
	if err == nil && found == nil {
		err = fmt.Errorf("no dead letter has the ID %s, nor was it the entry %s; see processor dlq list", id, id)
	}
	return found, err
}

// decode returns the record that a dead letter decodes to.
func (m *dlqClient) decode(l *protocol.DLQEntry, edited []string) (telemetry.Record, error) {
	e := telemetry.Entry{ID: l.Entry.ID, Fields: stream.ReplayFields(&l.DeadLetter, edited)}
	var r telemetry.Record
	err := m.decoder.Decode(&e, &r)
	return r, err
}

func printDeadLetter(out *cli.Output, j deadLetterJSON) error {
	t := cli.NewTable("WHAT", "VALUE")
	t.Row("id", j.ID)
	t.Row("source id", j.SourceID)
	t.Row("class", cli.Colored(j.Class, cli.Yellow))
	t.Row("field", cli.Colored(j.Field, cli.Red))
	t.Row("attempts", strconv.Itoa(j.Attempts))
	t.Row("first failed", j.FirstFailed.Format(time.RFC3339))
	t.Row("last failed", j.LastFailed.Format(time.RFC3339))
	t.Row("by", j.Instance+" "+j.Version)
	t.Row("fingerprint", j.Fingerprint)
	if err := out.Table(t); err != nil {
		return err
	}
	if err := out.Line("\n%s", out.Paint(cli.Red, j.Error)); err != nil {
		return err
	}
	show := func(title string, fields []fieldJSON) error {
		if err := out.Line("\n%s", out.Paint(cli.Bold, title)); err != nil {
			return err
		}
		for _, f := range fields {
			c := cli.Plain
			if f.Name == j.Field || f.Name == telemetry.FieldPayload && len(j.Field) > len(f.Name) && j.Field[:len(f.Name)] == f.Name {
				c = cli.Red
			}
			if err := out.Line("%s = %s", out.Paint(c, strconv.Quote(f.Name)), f.Value); err != nil {
				return err
			}
		}
		return nil
	}
	if err := show("the entry", j.Fields); err != nil {
		return err
	}
	if j.Edited != nil {
		if err := show("as edited", j.Edited); err != nil {
			return err
		}
	}
	if j.Record == nil {
		return out.Line("\nnow: %s", out.Paint(cli.Red, j.NowFails))
	}
	return out.Line("\nnow: %s at %s, %v %v, %s", out.Paint(cli.Green, "decodes"), j.Record.Time.Format(time.RFC3339Nano),
		j.Record.Latitude, j.Record.Longitude, j.Record.Attributes)
}

// kindJSON is a group of dead letters with the same failure.
type kindJSON struct {
	Fingerprint string    `json:"fingerprint"`
	Class       string    `json:"class"`
	Count       int       `json:"count"`
	Devices     int       `json:"devices"`
	Edited      *int      `json:"edited"` // null while Postgres is unavailable
	First       time.Time `json:"first"`
	Last        time.Time `json:"last"`
	Example     string    `json:"example"`
}

func newDLQStatsCommand() *cobra.Command {
	var f filter
	cmd := &cobra.Command{
		Use:     "stats",
		Short:   "Count dead letters by failure",
		Example: "  processor dlq stats\n  processor dlq stats --since 24h --json",
		Args:    cobra.NoArgs,
		RunE: withDLQ(func(cmd *cobra.Command, m *dlqClient, _ []string) error {
			if err := f.set(cmd, nil); err != nil {
				return err
			}
			kinds := make(map[string]*kindJSON)
			kindOf := make(map[telemetry.EntryID]*kindJSON)
			var ids []telemetry.EntryID
			devices := make(map[[2]string]bool)
			err := m.each(cmd.Context(), &f, func(l *protocol.DLQEntry) bool {
				j := deadLetterOf(l, false)
				k := kinds[j.Fingerprint]
				if k == nil {
					k = &kindJSON{Fingerprint: j.Fingerprint, Class: j.Class, First: l.ID.Time(), Example: j.ID}
					kinds[j.Fingerprint] = k
				}
				k.Count++
				k.Last = l.ID.Time()
				kindOf[l.ID], ids = k, append(ids, l.ID)
				if d := [2]string{j.Fingerprint, j.Device}; !devices[d] {
					devices[d] = true
					k.Devices++
				}
				return true
			})
			if err != nil {
				return err
			}
			edited := m.whichEdited(cmd, ids)
			list := make([]*kindJSON, 0, len(kinds))
			for _, k := range kinds {
				if edited != nil {
					k.Edited = new(int)
				}
				list = append(list, k)
			}
			for id := range edited {
				*kindOf[id].Edited++
			}
			slices.SortFunc(list, func(a, b *kindJSON) int { return b.Count - a.Count })
			out := outputOf(cmd)
			return errors.Join(out.Result(list, func() error {
				if len(list) == 0 {
					return nil
				}
				t := cli.NewTable("COUNT", "DEVICES", "EDITED", "FINGERPRINT", "FIRST", "LAST", "EXAMPLE")
				for _, k := range list {
					n := any(cli.Colored(nil, cli.Yellow))
					if k.Edited != nil {
						n = cli.Number(*k.Edited)
					}
					t.Row(cli.Number(k.Count), cli.Number(k.Devices), n, k.Fingerprint, k.First.Format(time.DateTime), k.Last.Format(time.DateTime), k.Example)
				}
				return out.Table(t)
			}), f.matched(cmd, len(list)))
		}),
	}
	f.flags(cmd)
	return cmd
}

func newDLQExportCommand() *cobra.Command {
	var f filter
	var file string
	cmd := &cobra.Command{
		Use:   "export [ID...]",
		Short: "Write dead letters as lines of JSON, without removing them",
		Example: `  processor dlq export --class sink > sink.jsonl
  processor dlq export --file all.jsonl`,
		Args: cobra.ArbitraryArgs,
		RunE: withDLQ(func(cmd *cobra.Command, m *dlqClient, args []string) (err error) {
			if err := f.set(cmd, args); err != nil {
				return err
			}
			var w io.Writer = cmd.OutOrStdout()
			if file != "" {
				out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
				if err != nil {
					return fmt.Errorf("export: %w", err)
				}
				defer func() {
					if closeErr := out.Close(); err == nil {
						err = closeErr
					}
				}()
				w = out
			}
			enc := json.NewEncoder(cli.JSON(w))
			enc.SetEscapeHTML(false)
			var failed error
			written := 0
			err = m.each(cmd.Context(), &f, func(l *protocol.DLQEntry) bool {
				failed = enc.Encode(deadLetterOf(l, true))
				written++
				return failed == nil
			})
			if err == nil {
				err = failed
			}
			if err == nil && file != "" && written == 0 {
				err = os.Remove(file) // an empty file looks like a success
			}
			if err == nil {
				err = f.matched(cmd, written)
			}
			return err
		}),
	}
	f.flags(cmd)
	cmd.Flags().StringVar(&file, "file", "", "file to create")
	return cmd
}
