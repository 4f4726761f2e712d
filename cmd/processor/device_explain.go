package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/store"
)

func newDeviceExplainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "explain IMEI FENCE [TIME]",
		Short: "Explain one crossing, or why there is none",
		Long: `Replays one decision about a device and a fence: the fixes around it, which of them
take part and why the others do not, the versions of the fence, the entries, the owner
of the device, and what became of the crossing since. Without a time it is the last
crossing of that fence; with one the crossing of that device time, or the two fixes
between which it lies. Changes nothing.

Positions that take no part: no fix (too few satellites, or at 0, 0), future and
ancient (the tracker's clock), faulty (flagged by an operator), jump (too far from both
neighbours), undecided (the newest, if it may be a jump). Records that lost their device
time to another are conflicts if they differ, else duplicates. Entries are those that
the stream still has.

Exits 1 for an unknown device or fence, without a crossing where no time is given, and
if what is recorded is not what its fixes say now.`,
		Example: `  processor device explain 356307042441013 yard
  processor device explain 356307042441013 yard 2026-08-01T10:00:00Z --json`,
		Args: cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			var at time.Time
			if len(args) == 3 {
				var err error
				if at, err = time.Parse(time.RFC3339, args[2]); err != nil {
					return fault.Exitf(fault.Config, "time %q: want 2026-08-01T10:00:00Z", args[2])
				}
			}
			f, err := openFleet(cmd)
			if err != nil {
				return err
			}
			defer f.Close()
			x, err := f.Explain(cmd.Context(), args[0], args[1], at)
			if err != nil {
				return err
			}
			if x.Unanswered != nil {
				say(cmd.ErrOrStderr(), "processor: warning: entries are unknown: %v", x.Unanswered)
			}
			if err := printed(cmd, &x, printExplanation); err != nil {
				return err
			}
			if !x.Agree && !x.Gone {
				return fault.Exit(fault.Finding, nil)
			}
			return nil
		},
	}
}

func printExplanation(out *cli.Output, x *operator.Explanation) error {
	t := cli.NewTable("WHAT", "VALUE")
	t.Row("device", x.Device)
	t.Row("fence", x.Fence)
	for _, c := range x.Crossings {
		t.Row("recorded", crossingLine(&c))
	}
	if len(x.Crossings) == 0 {
		t.Row("recorded", "no crossing at "+clock(x.At))
	}
	switch {
	case x.Gone:
		t.Row("says now", cli.Colored("unknown: the positions it was recorded from are not stored any more", cli.Yellow))
	case x.Agree:
		t.Row("says now", cli.Colored("the same", cli.Green))
	default:
		for _, c := range x.Derived {
			t.Row("says now", cli.Colored(crossingLine(&c), cli.Red))
		}
		if len(x.Derived) == 0 {
			t.Row("says now", cli.Colored("no crossing", cli.Red))
		}
	}
	owner := any(cli.Colored("nobody", cli.Yellow))
	if x.Owner != nil {
		owner = *x.Owner
	}
	t.Row("owner", owner)
	t.Row("shard, epoch", fmt.Sprintf("%d, %d", x.Shard, x.Epoch))
	err := errors.Join(out.Table(t), out.Line(""), printExplainedFixes(out, x))
	t = cli.NewTable("VERSION", "KIND", "FROM", "TO", "MADE", "BY", "REMARK")
	for _, v := range x.Versions {
		var remarks []string
		if v.Used {
			remarks = append(remarks, "valid here")
		}
		if v.Replaced != nil {
			remarks = append(remarks, "replaced at "+clock(*v.Replaced))
		}
		if !v.Enabled {
			remarks = append(remarks, "disabled")
		}
		if border := operator.Border(v.ExitMarginM, v.MinDwellS, v.MinIntervalS); border != "" {
			remarks = append(remarks, border)
		}
		t.Row(v.Version, v.Kind, orNone(v.From), orNone(v.To), clock(v.Created), v.By, strings.Join(remarks, ", "))
	}
	err = errors.Join(err, out.Line(""), out.Table(t))
	if len(x.Changes) > 0 {
		t = cli.NewTable("CHANGE", "WHAT", "KIND", "FROM", "TO", "REVISION", "WHEN")
		for _, c := range x.Changes {
			revision := ""
			if c.Revision != nil {
				revision = fmt.Sprint(*c.Revision)
			}
			t.Row(c.Number, c.Change, c.Kind, orNone(c.Old), orNone(c.New), revision, clock(c.At))
		}
		return errors.Join(err, out.Line(""), out.Table(t))
	}
	return errors.Join(err, out.Line(""), out.Line("no change of it is known any more (since %s)", orNone(x.ChangesSince)))
}

func crossingLine(c *store.ExplainedCrossing) string {
	s := fmt.Sprintf("%s at %s, version %d", c.Kind, clock(c.At), c.Version)
	if c.Method != nil {
		s += ", " + *c.Method
	}
	if c.MaxError != nil && c.Distance != nil && c.Speed != nil {
		s += fmt.Sprintf(" within %v over %.0f m at %.0f km/h", time.Duration(*c.MaxError)*time.Millisecond, *c.Distance, *c.Speed)
	}
	if c.Suppressed {
		s += ", suppressed"
	}
	if c.Revision > 0 {
		s += fmt.Sprintf(", revision %d", c.Revision)
	}
	return s
}

func printExplainedFixes(out *cli.Output, x *operator.Explanation) error {
	t := cli.NewTable("DEVICE TIME", "STREAM TIME", "LATITUDE", "LONGITUDE", "SPEED", "FENCE", "REMARK", "ENTRIES")
	for _, f := range x.Fixes {
		remark := strings.ReplaceAll(f.Why, "_", " ")
		if f.Role != "" {
			remark = f.Role + " fix"
		}
		inside := "outside"
		if f.Inside {
			inside = "inside"
		}
		var entries []string
		for _, e := range x.Entries {
			if e.Time.Equal(f.Time) {
				entries = append(entries, strings.TrimSuffix(e.ID+" "+e.State, " row"))
			}
		}
		for _, c := range x.Conflicts {
			if c.Time.Equal(f.Time) {
				remark = strings.TrimPrefix(remark+", conflict in "+strings.Join(c.Differs, " "), ", ")
			}
		}
		t.Row(clock(f.Time), clock(f.Ingested), f.Latitude, f.Longitude, f.Speed, inside, remark, strings.Join(entries, ", "))
	}
	err := out.Table(t)
	if x.More {
		err = errors.Join(err, out.Line("there are more positions than these"))
	}
	return err
}
