package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/telemetry"
)

func newDLQListCommand() *cobra.Command {
	var by filter
	var limit int
	cmd := &cobra.Command{
		Use:   "list [ID...]",
		Short: "List dead letters, oldest first",
		Example: `  processor dlq list --class invalid --since 24h
  processor dlq list --text latitude --json`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := by.set(cmd, args); err != nil {
				return err
			}
			cfg, err := dlqConfig(cmd, args)
			if err != nil {
				return err
			}
			n := 0
			var missing []string
			err = listOfEach(cmd, cfg, func(f *operator.Fleet) (letters, error) {
				l, err := f.DeadLetters(cmd.Context(), by.Filter, "", limit)
				if err == nil {
					warnEdits(cmd, l.Unanswered)
				}
				n, missing = n+len(l.Letters), l.Missing
				return letters{l}, err
			}, func(out *cli.Output, l letters) error {
				if len(l.Letters) == 0 {
					return nil
				}
				t := cli.NewTable("ID", "CLASS", "DEVICE", "AGE", "TRIES", "EDITED", "ERROR")
				for _, x := range l.Letters {
					t.Row(x.ID, x.Class, x.Device, age(x.ID), x.Attempts, editedMark(x.IsEdited), x.Error)
				}
				if err := out.Table(t); err != nil || !l.More {
					return err
				}
				return out.Line("more exist; see --limit")
			})
			if err != nil {
				return err
			}
			return by.matched(cmd, n, missing)
		},
	}
	by.flags(cmd)
	cmd.Flags().IntVar(&limit, "limit", 50, "maximum number to list")
	return cmd
}

// letters is a list whose JSON is the dead letters.
type letters struct{ operator.DeadLetterList }

// MarshalJSON implements json.Marshaler.
func (l letters) MarshalJSON() ([]byte, error) { return json.Marshal(l.Letters) }

// age returns how long ago a dead letter was written.
func age(id string) string {
	at, err := telemetry.ParseEntryID(id)
	if err != nil {
		return ""
	}
	return time.Since(at.Time()).Round(time.Second).String()
}

// warnEdits says that edits are unknown, if so.
func warnEdits(cmd *cobra.Command, unanswered error) {
	if unanswered != nil {
		say(cmd.ErrOrStderr(), "processor: warning: edits are unknown: %v", unanswered)
	}
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

func newDLQShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show one dead letter: reason, fields and decoded record",
		Example: `  processor dlq show 1764000000000-0
  processor dlq show 1764000000000-0 --json`,
		Args: cobra.ExactArgs(1),
		RunE: withDLQ(func(cmd *cobra.Command, f *operator.Fleet, args []string) error {
			l, err := f.DeadLetter(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printed(cmd, &l, printDeadLetter)
		}),
	}
}

func printDeadLetter(out *cli.Output, j *operator.DeadLetter) error {
	t := cli.NewTable("WHAT", "VALUE")
	t.Row("id", j.ID)
	t.Row("source id", j.SourceID)
	if j.ReplayOf != "" {
		t.Row("replay of", "dead letter "+j.ReplayOf+", first failed as "+j.FirstSource)
	}
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
	show := func(title string, fields []operator.Field) error {
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

func newDLQStatsCommand() *cobra.Command {
	var by filter
	cmd := &cobra.Command{
		Use:     "stats",
		Short:   "Count dead letters by failure",
		Example: "  processor dlq stats\n  processor dlq stats --since 24h --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := by.set(cmd, nil); err != nil {
				return err
			}
			cfg, err := dlqConfig(cmd, nil)
			if err != nil {
				return err
			}
			n := 0
			err = listOfEach(cmd, cfg, func(f *operator.Fleet) ([]*operator.FailureGroup, error) {
				list, unanswered, err := f.FailureGroups(cmd.Context(), by.Filter)
				if err == nil {
					warnEdits(cmd, unanswered)
				}
				n += len(list)
				return list, err
			}, func(out *cli.Output, list []*operator.FailureGroup) error {
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
			})
			if err != nil {
				return err
			}
			return by.matched(cmd, n, nil)
		},
	}
	by.flags(cmd)
	return cmd
}

func newDLQExportCommand() *cobra.Command {
	var by filter
	var file string
	cmd := &cobra.Command{
		Use:   "export [ID...]",
		Short: "Write dead letters as lines of JSON, without removing them",
		Example: `  processor dlq export --class sink > sink.jsonl
  processor dlq export --file all.jsonl`,
		Args: cobra.ArbitraryArgs,
		RunE: withDLQ(func(cmd *cobra.Command, f *operator.Fleet, args []string) (err error) {
			if err := by.set(cmd, args); err != nil {
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
			written, missing, err := f.ExportDeadLetters(cmd.Context(), by.Filter, func(l operator.DeadLetter) error { return enc.Encode(l) })
			if err == nil && file != "" && written == 0 {
				err = os.Remove(file) // an empty file looks like a success
			}
			if err == nil {
				err = by.matched(cmd, written, missing)
			}
			return err
		}),
	}
	by.flags(cmd)
	cmd.Flags().StringVar(&file, "file", "", "file to create")
	return cmd
}
