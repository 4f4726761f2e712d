package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

func newDLQEditCommand() *cobra.Command {
	var set []string
	var file string
	cmd := &cobra.Command{
		Use:   "edit ID [--set NAME=VALUE ...] [--payload-file FILE]",
		Short: "Correct one dead letter; the original and the difference are kept",
		Long: `Corrects what a dead letter will be sent again as: fields of the entry with
--set codec=8E, members of its payload with --set payload.latitude=48.1 (the value is
JSON), the whole payload with --payload-file, or in $EDITOR without either.`,
		Example: `  processor dlq edit 1764000000000-0 --set payload.latitude=48.137
  processor dlq edit 1764000000000-0 --payload-file mended.json`,
		Args: cobra.ExactArgs(1),
		RunE: withMorgue(func(cmd *cobra.Command, m *morgue, args []string) error {
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
			if err := m.archive.Export(cmd.Context(), []protocol.Letter{*l}, whoami()); err != nil {
				return err
			}
			if err := m.archive.Edit(cmd.Context(), l.ID, fields, diff, whoami()); err != nil {
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
			return out.result(result, func() error {
				if fails != nil {
					return out.line("%s\nstill: %s", diff, out.paint(red, fails.Error()))
				}
				return out.line("%s\nnow it %s; send it again with processor dlq retry %s", diff, out.paint(green, "decodes"), l.ID)
			})
		}),
	}
	cmd.Flags().StringArrayVar(&set, "set", nil, "a field of the entry, or payload.member=JSON")
	cmd.Flags().StringVar(&file, "payload-file", "", "file with the new payload")
	return cmd
}

// edited applies what the command line says to the fields of an entry.
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

// with sets the first field of a name, or adds it.
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

// setMember changes one member of an object and leaves the text of all others
// as it is, every digit of it.
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
			return nil, errors.New("what is there is no JSON object; use --payload-file")
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
		return "", fmt.Errorf("run %s: %w", editor, err)
	}
	mended, err := os.ReadFile(f.Name())
	if err != nil {
		return "", fmt.Errorf("edit: %w", err)
	}
	// Editors end a file with a newline that the payload did not have.
	if !strings.HasSuffix(text, "\n") {
		mended = []byte(strings.TrimSuffix(string(mended), "\n"))
	}
	return string(mended), nil
}

// difference is what an edit changed, field by field.
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

// note writes the audit, even when the command is being interrupted.
func (m *morgue) note(cmd *cobra.Command, action string, f *filter, count int) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), 10*time.Second)
	defer cancel()
	return m.audit.Note(ctx, whoami(), action, m.dead.Stream(), count, map[string]any{"filter": f.String(), "group": m.cfg.Redis.Group})
}
