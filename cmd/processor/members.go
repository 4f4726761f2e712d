package main

import (
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/operator"
)

func newMembersCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "members",
		Short: "List members, leader and shard ownership",
		Long: `Lists the instances with a heartbeat in Redis, and as gone those that own shards
without one, or whose shards were reassigned: these are listed for an hour, or until
the instance is back. Hot devices are named: those that cost a member more than a
tenth of its work. While Postgres is unavailable it lists the heartbeats, and
exits 1.`,
		Example: `  processor members
  processor members --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadServers(os.Environ())
			if err != nil {
				return err
			}
			return ofEachStream(cmd, cfg, func(f *operator.Fleet) (*operator.Members, error) {
				a, err := f.Members(cmd.Context())
				if err != nil {
					return nil, err
				}
				return &a, a.Unanswered
			}, printMembers)
		},
	}
}

func printMembers(out *cli.Output, m *operator.Members) error {
	t := cli.NewTable("MEMBER", "STATE", "LEADS", "SHARDS", "IN FLIGHT", "HOST", "PID", "VERSION", "UP")
	for _, x := range m.Members {
		state := cli.Colored(x.State, cli.Green)
		switch x.State {
		case operator.MemberGone, operator.MemberCutOff:
			state.Color = cli.Red
		case operator.MemberLeaving:
			state.Color = cli.Yellow
		}
		leads := any("")
		if x.Leads == nil {
			leads = cli.OrUnknown[bool](nil)
		} else if *x.Leads {
			leads = "yes"
		}
		if x.Started == nil {
			t.Row(x.Member, state, leads, x.Shards, "", x.Host, orBlank(x.PID), x.Version, "")
			continue
		}
		t.Row(x.Member, state, leads, x.Shards, cli.Number(*x.InFlight), x.Host, x.PID, x.Version, time.Since(*x.Started).Round(time.Second))
	}
	if len(m.Members) == 0 {
		return out.Line("no members in group %s on stream %s", m.Group, m.Stream)
	}
	if err := out.Table(t); err != nil {
		return err
	}
	for _, x := range m.Members {
		if x.Silent == nil {
			continue
		}
		if err := out.Line("%s: %s", out.Paint(cli.Red, x.Member), x.Silent); err != nil {
			return err
		}
	}
	for _, x := range m.Members {
		for _, d := range x.Hot {
			if err := out.Line("%s: %s", x.Member, cli.VisibleLine(operator.HotText(d))); err != nil {
				return err
			}
		}
	}
	return out.Line("term %v", cli.OrUnknown(m.Term))
}

func orBlank(n int) any {
	if n == 0 {
		return ""
	}
	return n
}
