package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/operator"
)

func newLagCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "lag",
		Short: "Show consumer lag and backlog",
		Long: `Shows how many entries are not dispatched yet (lag), dispatched and not acknowledged
(pending), and the age of the oldest; and from Postgres, if POSTGRES_URL is set, how
many wait for a retry (deferred) and how many are in the ledger of losses. Then the
ledger of the last 24 hours: losses with range and suspected cause, and incidents,
open ones first. Unknown figures are shown as unknown, never as 0.`,
		Example: `  processor lag
  processor lag --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := redisOf(cmd)
			if err != nil {
				return err
			}
			return ofEachStream(cmd, cfg, func(f *operator.Fleet) (*operator.Lag, error) {
				l, err := f.Lag(cmd.Context())
				if err != nil {
					return nil, err
				}
				if l.Unanswered != nil {
					say(cmd.ErrOrStderr(), "processor: warning: deferred and lost are unknown\n  %v", l.Unanswered)
				}
				return &l, nil
			}, printLag)
		},
	}
}

const shortTime = "01-02 15:04:05Z"

func printLag(out *cli.Output, l *operator.Lag) error {
	if err := out.Table(lagTable(l)); err != nil {
		return err
	}
	if err := printLosses(out, l.Losses); err != nil {
		return err
	}
	if len(l.Incidents) == 0 {
		return nil
	}
	t := cli.NewTable("INCIDENT", "OPENED", "CLOSED", "DETAIL", "SUBJECT")
	for _, r := range l.Incidents {
		to := any(cli.Colored("open", cli.Red))
		if r.Closed != nil {
			to = r.Closed.UTC().Format(shortTime)
		}
		t.Row(r.Kind, r.Opened.UTC().Format(shortTime), to, detailText(r.Detail), r.Subject)
	}
	err := errors.Join(out.Line(""), out.Table(t))
	if l.More {
		err = errors.Join(err, out.Line("more exist in processor.losses and processor.incidents"))
	}
	return err
}

func printLosses(out *cli.Output, losses []operator.Loss) error {
	if len(losses) == 0 {
		return nil
	}
	t := cli.NewTable("ENTRIES", "CAUSE", "FIRST", "LAST", "DETECTED")
	for _, r := range losses {
		t.Row(cli.OrUnknown(r.Entries), r.Cause, cli.OrUnknown(r.First), cli.OrUnknown(r.Last), r.Detected.UTC().Format(shortTime))
	}
	return errors.Join(out.Line(""), out.Table(t))
}

// detailText returns the details of an incident in one line, figures first.
func detailText(detail json.RawMessage) string {
	var parts map[string]json.RawMessage
	if err := json.Unmarshal(detail, &parts); err != nil {
		return string(detail)
	}
	var figures, names []string
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		text := name + " " + strings.Trim(strings.ReplaceAll(string(parts[name]), `\n`, " "), `"`)
		if json.Unmarshal(parts[name], new(float64)) == nil {
			figures = append(figures, text)
		} else {
			names = append(names, text)
		}
	}
	return strings.Join(append(figures, names...), ", ")
}

func lagTable(l *operator.Lag) *cli.Table {
	t := cli.NewTable("WHAT", "VALUE")
	name := func(name string, exists bool) string {
		if !exists {
			return name + " (does not exist)"
		}
		return name
	}
	t.Row("stream", name(l.Stream, l.StreamExists))
	t.Row("group", name(l.Group, l.GroupExists))
	t.Row("length", cli.Number(l.Length))
	t.Row("lag", cli.OrUnknown(l.Lag))
	t.Row("pending", cli.Number(l.Pending))
	t.Row("deferred", cli.OrUnknown(l.Deferred))
	t.Row("backlog", cli.OrUnknown(l.Backlog))
	t.Row("lost", cli.OrUnknown(l.Lost))
	switch {
	case l.OldestAgeSeconds != nil:
		t.Row("oldest", fmt.Sprintf("%s, %.1f s old", *l.OldestEntry, *l.OldestAgeSeconds))
	case l.OldestAhead != nil:
		t.Row("oldest", fmt.Sprintf("%s, of unknown age: %s", *l.OldestEntry, operator.AheadText(*l.OldestAhead)))
	case l.OldestKnown:
		t.Row("oldest", "none")
	default:
		t.Row("oldest", cli.OrUnknown[string](nil))
	}
	switch {
	case l.LossForecast != nil:
		t.Row("time to trim", fmt.Sprintf("%.1f s, if the oldest entry stays", *l.LossForecast))
	case l.OldestEntry == nil && l.OldestKnown:
		t.Row("time to trim", "nothing to trim")
	default:
		t.Row("time to trim", cli.OrUnknown[string](nil))
	}
	return t
}
