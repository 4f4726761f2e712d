package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
)

func newDLQEditCommand() *cobra.Command {
	var set []string
	var file, fromFile string
	cmd := &cobra.Command{
		Use:   "edit ID [--set NAME=VALUE ...] [--payload-file FILE] | edit --from-file FILE",
		Short: "Correct dead letters; the original and the difference are kept",
		Long: `Edits what a dead letter is replayed as: fields of the entry with --set codec=8E,
members of its payload with --set payload.latitude=48.1 (the value is JSON), the
whole payload with --payload-file, or in $EDITOR without either.

Edits many with --from-file: lines as dlq export writes them, with changed fields.
Of the other members only the ID is read. Unchanged dead letters are skipped.`,
		Example: `  processor dlq edit 1764000000000-0 --set payload.latitude=48.137
  processor dlq edit 1764000000000-0 --payload-file edited.json
  processor dlq export --class decode | sed 's/\\"north\\"/48.1/' > edited.jsonl
  processor dlq edit --from-file edited.jsonl`,
		Args: cobra.MaximumNArgs(1),
		RunE: withDLQ(func(cmd *cobra.Command, m *dlqClient, args []string) error {
			if fromFile != "" {
				if len(args) > 0 || set != nil || file != "" {
					return usageError(cmd, errors.New("--from-file excludes IDs and other flags"))
				}
				return m.editMany(cmd, fromFile)
			}
			if len(args) == 0 {
				return usageError(cmd, errors.New("specify an ID or --from-file"))
			}
			l, err := m.one(cmd, args[0])
			if err != nil {
				return err
			}
			before, err := m.archive.Edited(cmd.Context(), []telemetry.EntryID{l.ID})
			if err != nil {
				return err
			}
			fields := slices.Clone(l.Entry.Fields)
			if before[l.ID] != nil {
				fields = before[l.ID]
			}
			fields, err = edited(cmd, fields, set, file)
			if err != nil {
				return err
			}
			if slices.Equal(fields, l.Entry.Fields) {
				return exit(exitFinding, errors.New("nothing was changed"))
			}
			diff := difference(l.Entry.Fields, fields)
			if err := m.edit(cmd.Context(), []protocol.DLQEntry{*l}, []store.Edit{{ID: l.ID, Fields: fields, Diff: diff}}); err != nil {
				return err
			}
			f := filter{ids: map[string]bool{l.ID.String(): true}}
			if err := m.note(cmd, "dlq edit", &f, 1); err != nil {
				return err
			}
			_, fails := m.decode(l, fields)
			result := map[string]any{"id": l.ID.String(), "diff": diff, "now_fails": nil}
			if fails != nil {
				result["now_fails"] = fails.Error()
			}
			out := outputOf(cmd)
			return out.Result(result, func() error {
				if fails != nil {
					return out.Line("%s\nstill: %s", diff, out.Paint(cli.Red, fails.Error()))
				}
				return out.Line("%s\nnow it %s; replay it with processor dlq retry %s", diff, out.Paint(cli.Green, "decodes"), l.ID)
			})
		}),
	}
	cmd.Flags().StringArrayVar(&set, "set", nil, "a field of the entry, or payload.member=JSON")
	cmd.Flags().StringVar(&file, "payload-file", "", "file with the new payload")
	cmd.Flags().StringVar(&fromFile, "from-file", "", "file written by dlq export, with edited fields")
	return cmd
}

// edit stores the originals and the edited fields.
func (m *dlqClient) edit(ctx context.Context, letters []protocol.DLQEntry, edits []store.Edit) error {
	if err := m.archive.Export(ctx, letters, operatorName()); err != nil {
		return err
	}
	return m.archive.Edit(ctx, edits, operatorName())
}

// editJSON is the outcome of one line of a file of edited dead letters.
type editJSON struct {
	ID       string `json:"id"`
	Outcome  string `json:"outcome"` // edited, unchanged, gone
	NowFails string `json:"now_fails,omitempty"`
}

func (m *dlqClient) editMany(cmd *cobra.Command, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read edited dead letters: %w", err)
	}
	defer func() { _ = file.Close() }()
	report := []editJSON{}
	count := make(map[string]int)
	lines := json.NewDecoder(file)
	for more := true; more && err == nil; {
		var page []deadLetterJSON
		if page, more, err = nextDeadLetters(lines); err == nil {
			err = m.editSome(cmd.Context(), page, func(line editJSON) {
				report = append(report, line)
				count[line.Outcome]++
				if line.NowFails != "" {
					count["fails"]++
				}
			})
		}
	}
	if count["edited"] > 0 {
		f := filter{text: "fixed in " + filepath.Base(path)}
		if noteErr := m.note(cmd, "dlq edit", &f, count["edited"]); err == nil {
			err = noteErr
		}
	}
	out := outputOf(cmd)
	printErr := out.Result(report, func() error {
		t := cli.NewTable("ID", "OUTCOME", "REMAINING ERROR")
		for _, l := range report {
			c := cli.Green
			if l.Outcome != "edited" || l.NowFails != "" {
				c = cli.Yellow
			}
			t.Row(l.ID, cli.Colored(l.Outcome, c), l.NowFails)
		}
		if err := out.Table(t); err != nil {
			return err
		}
		return out.Line("edited %d, of which %d still fail; %d unchanged, %d gone", count["edited"], count["fails"], count["unchanged"], count["gone"])
	})
	if err == nil {
		err = printErr
	}
	if err == nil && len(report) == 0 {
		err = exit(exitFinding, fmt.Errorf("%s has no dead letters; processor dlq export writes them", path))
	}
	if err == nil && count["gone"] > 0 {
		err = exit(exitFinding, fmt.Errorf("%d of %d are no longer dead letters", count["gone"], len(report)))
	}
	return err
}

// nextDeadLetters reads a page of lines that dlq export wrote.
func nextDeadLetters(lines *json.Decoder) (page []deadLetterJSON, more bool, err error) {
	for len(page) < deadLetterBatch {
		var l deadLetterJSON
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

func (m *dlqClient) editSome(ctx context.Context, page []deadLetterJSON, tell func(editJSON)) error {
	ids := make([]telemetry.EntryID, len(page))
	for i, l := range page {
		var err error
		if ids[i], err = telemetry.ParseEntryID(l.ID); err != nil {
			return fmt.Errorf("read edited dead letters: %w", err)
		}
	}
	found, err := m.dead.Get(ctx, ids)
	if err != nil {
		return err
	}
	there := make(map[telemetry.EntryID]*protocol.DLQEntry, len(found))
	for i := range found {
		if found[i].Err == nil {
			there[found[i].ID] = &found[i]
		}
	}
	report := make([]editJSON, len(page))
	var letters []protocol.DLQEntry
	var edits []store.Edit
	for i := range page {
		fields, err := plainFields(page[i].Fields)
		if err != nil {
			return fmt.Errorf("read edited dead letter %s: %w", page[i].ID, err)
		}
		l := there[ids[i]]
		report[i] = editJSON{ID: page[i].ID, Outcome: "edited"}
		switch {
		case l == nil:
			report[i].Outcome = "gone"
		case slices.Equal(fields, l.Entry.Fields):
			report[i].Outcome = "unchanged"
		default:
			if _, err := m.decode(l, fields); err != nil {
				report[i].NowFails = err.Error()
			}
			letters = append(letters, *l)
			edits = append(edits, store.Edit{ID: l.ID, Fields: fields, Diff: difference(l.Entry.Fields, fields)})
		}
	}
	if err := m.edit(ctx, letters, edits); err != nil {
		return err
	}
	for _, line := range report {
		tell(line)
	}
	return nil
}

// plainFields is the inverse of fieldsOf.
func plainFields(list []fieldJSON) ([]string, error) {
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

// edited applies the flags to the fields of an entry.
func edited(cmd *cobra.Command, fields, set []string, file string) ([]string, error) {
	payload, _ := (&telemetry.Entry{Fields: fields}).Field(telemetry.FieldPayload)
	switch {
	case file != "":
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read the new payload: %w", err)
		}
		fields = with(fields, telemetry.FieldPayload, strings.TrimRight(string(text), "\r\n"))
	case len(set) == 0:
		text, err := inEditor(cmd, payload)
		if err != nil {
			return nil, err
		}
		fields = with(fields, telemetry.FieldPayload, text)
	}
	for _, s := range set {
		name, value, ok := strings.Cut(s, "=")
		if !ok {
			return nil, usageError(cmd, fmt.Errorf("--set %s: want NAME=VALUE", s))
		}
		member, inside := strings.CutPrefix(name, telemetry.FieldPayload+".")
		if !inside {
			fields = with(fields, name, value)
			continue
		}
		payload, _ := (&telemetry.Entry{Fields: fields}).Field(telemetry.FieldPayload)
		changed, err := setMember(json.RawMessage(payload), strings.Split(member, "."), json.RawMessage(value))
		if err != nil {
			return nil, fmt.Errorf("--set %s: %w", s, err)
		}
		fields = with(fields, telemetry.FieldPayload, string(changed))
	}
	return fields, nil
}

// with sets the first field of that name, or appends it.
func with(fields []string, name, value string) []string {
	for i := 0; i+1 < len(fields); i += 2 {
		if fields[i] == name {
			fields = slices.Clone(fields)
			fields[i+1] = value
			return fields
		}
	}
	return append(slices.Clip(fields), name, value)
}

// setMember changes one member of a JSON object and leaves the text of all other
// members unchanged, every digit of it.
func setMember(object json.RawMessage, path []string, value json.RawMessage) (json.RawMessage, error) {
	if len(path) == 0 {
		if !json.Valid(value) {
			return nil, fmt.Errorf("%s is not JSON; text needs quotes", value)
		}
		return value, nil
	}
	members := make(map[string]json.RawMessage)
	if object != nil {
		if err := json.Unmarshal(object, &members); err != nil {
			return nil, errors.New("the payload is not a JSON object; use --payload-file")
		}
	}
	changed, err := setMember(members[path[0]], path[1:], value)
	if err != nil {
		return nil, err
	}
	members[path[0]] = changed
	return json.Marshal(members)
}

func inEditor(cmd *cobra.Command, text string) (string, error) {
	editor := os.Getenv("EDITOR")
	if editor == "" {
		return "", usageError(cmd, errors.New("EDITOR is not set: use --set or --payload-file"))
	}
	f, err := os.CreateTemp("", "payload-*.json")
	if err != nil {
		return "", fmt.Errorf("edit: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	if _, err := f.WriteString(text); err != nil {
		return "", fmt.Errorf("edit: %w", err)
	}
	if err := f.Close(); err != nil {
		return "", fmt.Errorf("edit: %w", err)
	}
	argv := append(strings.Fields(editor), f.Name())
	run := exec.CommandContext(cmd.Context(), argv[0], argv[1:]...)
	run.Stdin, run.Stdout, run.Stderr = cmd.InOrStdin(), cmd.ErrOrStderr(), cmd.ErrOrStderr()
	if err := run.Run(); err != nil {
		return "", exit(exitFinding, fmt.Errorf("run %s: %w; nothing is changed", editor, err))
	}
	edited, err := os.ReadFile(f.Name())
	if err != nil {
		return "", fmt.Errorf("edit: %w", err)
	}
	// Editors end a file with a newline that the payload did not have.
	if !strings.HasSuffix(text, "\n") {
		edited = []byte(strings.TrimSuffix(string(edited), "\n"))
	}
	return string(edited), nil
}

// difference returns what an edit changed, field by field.
func difference(old, changed []string) string {
	var b strings.Builder
	was := telemetry.Entry{Fields: old}
	for i := 0; i+1 < len(changed); i += 2 {
		value, ok := was.Field(changed[i])
		if ok && value == changed[i+1] {
			continue
		}
		if ok {
			fmt.Fprintf(&b, "- %s=%s\n", changed[i], value)
		}
		fmt.Fprintf(&b, "+ %s=%s\n", changed[i], changed[i+1])
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// note records the audit, even if the command is being interrupted.
func (m *dlqClient) note(cmd *cobra.Command, action string, f *filter, count int) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), 10*time.Second)
	defer cancel()
	return m.audit.Note(ctx, operatorName(), action, m.dead.Stream(), count, map[string]any{"filter": f.String(), "group": m.cfg.Redis.Group})
}
