package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/telemetry"
)

func newDLQEditCommand() *cobra.Command {
	var set []string
	var file, fromFile string
	var by filter
	var all, dry, takeBack bool
	var replace operator.Replacement
	cmd := &cobra.Command{
		Use:   "edit [ID...] [--set NAME=V | --replace OLD | --from-file FILE | --take-back]",
		Short: "Correct dead letters; the original and the difference are kept",
		Long: `Edits what a dead letter is replayed as: fields of the entry with --set codec=8E,
members of its payload with --set payload.latitude=48.1 (the value is JSON), the
whole payload with --payload-file, or in $EDITOR without either. One that ends at the
original fields takes the edits before back.

Edits many with --from-file: lines as dlq export writes them, with changed fields.
Of the other members only the ID is read. Unchanged lines, with the original fields or
those of the edit in effect, are skipped: edits before stay.

Takes the edits of all that a filter or IDs select back with --take-back.

Edits all that a filter selects with --replace OLD --with NEW: the text is replaced
in the payload wherever it stands. With --regexp it is a regular expression (RE2),
and NEW may have $1. With --dry-run it shows the first five differences and how
many decode then. At most 10,000 are edited at a time.`,
		Example: `  processor dlq edit 1764000000000-0 --set payload.latitude=48.137
  processor dlq edit 1764000000000-0 --payload-file edited.json
  processor dlq export --class decode | sed 's/\\"north\\"/48.1/' > edited.jsonl
  processor dlq edit --from-file edited.jsonl
  processor dlq edit --fingerprint decode/payload.speed/type --replace '"fast"' --with 90 --dry-run
  processor dlq edit --fingerprint decode/payload.speed/type --take-back`,
		Args: cobra.ArbitraryArgs,
		RunE: withDLQ(func(cmd *cobra.Command, f *operator.Fleet, args []string) error {
			if takeBack {
				if set != nil || file+fromFile != "" || cmd.Flags().Changed("replace") || cmd.Flags().Changed("with") || replace.Regexp || dry {
					return usageError(cmd, errors.New("--take-back excludes all but IDs, a filter and --all"))
				}
				if err := by.set(cmd, args); err != nil {
					return err
				}
				if by.Empty() && !all {
					return usageError(cmd, operator.ErrChooseAll)
				}
				return takeBackMany(cmd, f, &by)
			}
			if fromFile != "" {
				if len(args) > 0 || set != nil || file != "" {
					return usageError(cmd, errors.New("--from-file excludes IDs and other flags"))
				}
				return editMany(cmd, f, fromFile)
			}
			if cmd.Flags().Changed("replace") {
				if set != nil || file != "" || !cmd.Flags().Changed("with") {
					return usageError(cmd, errors.New("--replace needs --with, and excludes --set and --payload-file"))
				}
				if err := by.set(cmd, args); err != nil {
					return err
				}
				if by.Empty() && !all {
					return usageError(cmd, operator.ErrChooseAll)
				}
				return replaceMany(cmd, f, &by, replace, dry)
			}
			if dry || all || replace.Regexp || cmd.Flags().Changed("with") || !by.Empty() || by.since+by.until != "" {
				return usageError(cmd, errors.New("a filter, --all, --with, --regexp and --dry-run need --replace"))
			}
			if len(args) != 1 {
				return usageError(cmd, errors.New("specify one ID, --from-file or --replace"))
			}
			e, err := f.EditDeadLetter(cmd.Context(), args[0], func(fields []string) ([]string, error) {
				return edited(cmd, fields, set, file)
			})
			if err != nil {
				return err
			}
			return printed(cmd, &e, func(out *cli.Output, e *operator.Edited) error {
				if e.Before {
					e.Diff += "\nnothing was changed: it was edited like this before"
				}
				if e.NowFails != nil {
					return out.Line("%s\nstill: %s", e.Diff, out.Paint(cli.Red, *e.NowFails))
				}
				return out.Line("%s\nnow it %s; replay it with processor dlq retry %s", e.Diff, out.Paint(cli.Green, "decodes"), e.ID)
			})
		}),
	}
	cmd.Flags().StringArrayVar(&set, "set", nil, "a field of the entry, or payload.member=JSON")
	cmd.Flags().StringVar(&file, "payload-file", "", "file with the new payload")
	cmd.Flags().StringVar(&fromFile, "from-file", "", "file written by dlq export, with edited fields")
	by.flags(cmd)
	cmd.Flags().StringVar(&replace.Old, "replace", "", "text to replace in the payload of all that is selected")
	cmd.Flags().StringVar(&replace.New, "with", "", "text that replaces it")
	_ = cmd.Flags().SetAnnotation("with", mayBeEmpty, nil) // the flag is there
	cmd.Flags().BoolVar(&replace.Regexp, "regexp", false, "the text to replace is a regular expression (RE2)")
	cmd.Flags().BoolVar(&all, "all", false, "select all dead letters")
	cmd.Flags().BoolVar(&takeBack, "take-back", false, "take the edits of all that is selected back")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only show what would be replaced")
	return cmd
}

func replaceMany(cmd *cobra.Command, f *operator.Fleet, by *filter, replace operator.Replacement, dry bool) error {
	r, err := f.ReplaceInDeadLetters(cmd.Context(), by.Filter, replace, operator.ReplaceOptions{DryRun: dry})
	by.note(cmd, r.Selected, r.Missing)
	if r.Edited == 0 {
		return err
	}
	out := outputOf(cmd)
	return errors.Join(out.Result(r, func() error {
		for _, e := range r.Samples {
			if err := out.Line("%s\n%s", e.ID, e.Diff); err != nil {
				return err
			}
			if e.NowFails != nil {
				if err := out.Line("still: %s", out.Paint(cli.Red, *e.NowFails)); err != nil {
					return err
				}
			}
		}
		return out.Line("%s", r.String())
	}), err)
}

func takeBackMany(cmd *cobra.Command, f *operator.Fleet, by *filter) error {
	r, err := f.TakeBackEdits(cmd.Context(), by.Filter)
	by.note(cmd, r.Selected, r.Missing)
	if r.TakenBack == 0 {
		return err
	}
	return errors.Join(printed(cmd, &r, func(out *cli.Output, r *operator.TakenBack) error {
		return out.Line("%d of %d selected taken back", r.TakenBack, r.Selected)
	}), err)
}

func editMany(cmd *cobra.Command, f *operator.Fleet, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read edited dead letters: %w", err)
	}
	defer func() { _ = file.Close() }()
	report, err := f.EditDeadLetters(cmd.Context(), file, filepath.Base(path))
	if report == nil {
		return err
	}
	count := make(map[string]int)
	for _, line := range report {
		count[line.Outcome]++
		if line.NowFails != "" && line.Outcome == "edited" {
			count["fails"]++
		}
		if line.Edited {
			count["kept"]++
		}
	}
	if n := count["kept"]; n > 0 {
		say(cmd.ErrOrStderr(), "%d unchanged with the original fields: the edits before stay, which processor dlq edit --take-back takes back", n)
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
		err = fault.Exit(fault.Finding, fmt.Errorf("%s has no dead letters; processor dlq export writes them", path))
	}
	if err == nil && count["gone"] > 0 {
		err = fault.Exit(fault.Finding, fmt.Errorf("%d of %d are no longer dead letters", count["gone"], len(report)))
	}
	return err
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
		return operator.SetField(fields, telemetry.FieldPayload, strings.TrimRight(string(text), "\r\n"))
	case len(set) == 0:
		text, err := inEditor(cmd, payload)
		if err != nil {
			return nil, err
		}
		return operator.SetField(fields, telemetry.FieldPayload, text)
	}
	for _, s := range set {
		name, value, ok := strings.Cut(s, "=")
		if !ok {
			return nil, usageError(cmd, fmt.Errorf("--set %s: want NAME=VALUE", s))
		}
		var err error
		if fields, err = operator.SetField(fields, name, value); err != nil {
			return nil, fmt.Errorf("--set %s: %w", s, err)
		}
	}
	return fields, nil
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
		return "", fault.Exit(fault.Finding, fmt.Errorf("run %s: %w; nothing is changed", editor, err))
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
