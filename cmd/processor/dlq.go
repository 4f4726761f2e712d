package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/operator"
)

func newDLQCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "dlq",
		Short: "Inspect, edit and replay dead letters",
		Long: `Dead letters are entries that could not be decoded, broke a rule, were rejected by
Postgres, or crashed the process. They are kept in a stream of their own. IDs are
those of the dead letters or of the original entries.

Uses the environment of the service. Every change is recorded in processor.audit.`,
		Example: `  processor dlq stats
  processor dlq list --class decode --device 356307042441013
  processor dlq retry --fingerprint decode/payload/truncated --dry-run`,
	}, newDLQListCommand(), newDLQShowCommand(), newDLQStatsCommand(), newDLQExportCommand(),
		newDLQEditCommand(), newDLQRetryCommand(), newDLQDropCommand(), newDLQRestoreCommand(), newDLQArchiveCommand(), newDLQDeferredCommand())
}

// dlqConfig loads the settings. IDs are those of one stream: of several it must be named.
func dlqConfig(cmd *cobra.Command, ids []string) (config.Config, error) {
	cfg, err := config.Load(os.Environ())
	if err != nil || len(ids) == 0 {
		return cfg, err
	}
	name, err := cmd.Flags().GetString("stream")
	if err != nil {
		return cfg, err
	}
	return cfg.ForStream(name)
}

// withDLQ runs a command with the fleet and closes it.
func withDLQ(work func(cmd *cobra.Command, f *operator.Fleet, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		f, err := openWithSettings(cmd)
		if err != nil {
			return err
		}
		defer f.Close()
		return work(cmd, f, args)
	}
}

// filter is the flags that select dead letters.
type filter struct {
	operator.Filter
	since, until string
}

func (f *filter) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.Class, "class", "", "reason: decode, invalid, sink, crash, too_large or foreign")
	cmd.Flags().StringVar(&f.Device, "device", "", "device ID")
	cmd.Flags().StringVar(&f.Fingerprint, "fingerprint", "", "failure group, as dlq stats lists them")
	cmd.Flags().StringVar(&f.Text, "text", "", "text that the error or a field contains")
	cmd.Flags().StringVar(&f.since, "since", "", "dead-lettered since: 2026-08-01T10:00:00Z, or 24h for the last day")
	cmd.Flags().StringVar(&f.until, "until", "", "dead-lettered until: as --since")
}

// set reads the arguments of the command line.
func (f *filter) set(cmd *cobra.Command, ids []string) (err error) {
	f.IDs = ids
	if f.Since, err = moment(f.since); err == nil {
		f.Until, err = moment(f.until)
	}
	if err == nil {
		err = f.Check()
	}
	if err != nil {
		return usageError(cmd, err)
	}
	return nil
}

// note tells of IDs without a dead letter, and that there are none at all.
func (f *filter) note(cmd *cobra.Command, n int, missing []string) {
	if n == 0 && f.Empty() {
		say(cmd.ErrOrStderr(), "there are no dead letters")
	}
	for _, id := range missing {
		if n > 0 {
			say(cmd.ErrOrStderr(), "no dead letter has the ID %s, nor was it the entry %s", id, id)
		}
	}
}

// matched notes and returns an error for an empty selection by a filter.
func (f *filter) matched(cmd *cobra.Command, n int, missing []string) error {
	f.note(cmd, n, missing)
	if n > 0 {
		return nil
	}
	return f.NoMatch()
}

func moment(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return time.Now().Add(-d), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, fmt.Errorf("time %q: want 2026-08-01T10:00:00Z or a duration such as 24h", text)
	}
	return at, nil
}
