package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/console"
	"github.com/trmtracking/processor/internal/operator"
)

func newTopCommand() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch the fleet in the terminal",
		Long: `Shows the overview of the console, renewed every second: the one thing to do, backlog,
rates of the last hour, members; of each stream, if there are several. q or Ctrl-C ends
it. With --once, with --json and where the output is no terminal it prints the overview
once.`,
		Example: `  processor top
  processor top --once
  processor top --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := redisOf(cmd)
			if err != nil {
				return err
			}
			name, err := cmd.Flags().GetString("stream")
			if err != nil {
				return err
			}
			fleets, err := openEach(cmd, cfg, name)
			if err != nil {
				return err
			}
			for _, f := range fleets {
				defer f.Close()
			}
			out := outputOf(cmd)
			if once || out.JSON || !out.Terminal {
				all, _ := lookAtAll(cmd.Context(), fleets, make([]*console.View, len(fleets)))
				result := any(perStream[console.Glance]{Streams: all})
				if len(all) == 1 {
					result = all[0]
				}
				return out.Result(result, func() error { return out.Line("%s", glancesText(out, all, cli.Columns)) })
			}
			_, err = tea.NewProgram(&topModel{fleets: fleets, out: out, views: make([]*console.View, len(fleets))}, tea.WithContext(cmd.Context())).Run()
			return err
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "print it once")
	return cmd
}

// topModel is the overview on a terminal.
type topModel struct {
	fleets  []*operator.Fleet // one for each stream
	out     *cli.Output
	views   []*console.View
	glances []*console.Glance // nil before the first answer
	width   int
}

// looked is an answer.
type looked struct {
	glances []*console.Glance
	views   []*console.View
}

// lookAtAll asks about all streams at the same time.
func lookAtAll(ctx context.Context, fleets []*operator.Fleet, last []*console.View) ([]*console.Glance, []*console.View) {
	glances, views := make([]*console.Glance, len(fleets)), make([]*console.View, len(fleets))
	var asked sync.WaitGroup
	for i, f := range fleets {
		asked.Go(func() {
			g, v := console.Look(ctx, f, last[i])
			if len(fleets) > 1 {
				g.Stream = f.Stream()
			}
			glances[i], views[i] = &g, v
		})
	}
	asked.Wait()
	return glances, views
}

// lookAgain is due.
type lookAgain struct{}

// topEvery is the interval of the answers.
const topEvery = time.Second

// Init asks for the first time.
func (m *topModel) Init() tea.Cmd { return m.look }

func (m *topModel) look() tea.Msg {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	g, v := lookAtAll(ctx, m.fleets, m.views)
	return looked{g, v}
}

// Update takes an answer, a key or a size.
func (m *topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.KeyPressMsg:
		switch msg.String() {
		case "q", "ctrl+c", "esc":
			return m, tea.Quit
		}
	case tea.WindowSizeMsg:
		m.width = msg.Width
	case looked:
		m.glances, m.views = msg.glances, msg.views
		return m, tea.Tick(topEvery, func(time.Time) tea.Msg { return lookAgain{} })
	case lookAgain:
		return m, m.look
	}
	return m, nil
}

// View draws the last answer.
func (m *topModel) View() tea.View {
	text := "asking the fleet ..."
	if m.glances != nil {
		width := m.width
		if width == 0 {
			width = cli.Columns
		}
		text = glancesText(m.out, m.glances, width) + "\n\nq ends it"
	}
	v := tea.NewView(text)
	v.AltScreen = true
	return v
}

// glancesText returns the overviews, each under the name of its stream if there are several.
func glancesText(out *cli.Output, all []*console.Glance, width int) string {
	texts := make([]string, len(all))
	for i, g := range all {
		texts[i] = glanceText(out, *g, width)
		if g.Stream != "" {
			texts[i] = out.Paint(cli.Bold, "stream "+cli.VisibleLine(g.Stream)) + "\n" + texts[i]
		}
	}
	return strings.Join(texts, "\n\n")
}

// glanceText returns the overview as lines.
func glanceText(out *cli.Output, g console.Glance, width int) string {
	colors := map[string]cli.Color{"ok": cli.Green, "warn": cli.Yellow, "bad": cli.Red}
	signs := map[string]string{"ok": "●", "warn": "▲", "bad": "■"}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("%s  %s", out.Paint(colors[g.Level], signs[g.Level]+" "+cli.VisibleLine(g.Verdict)), g.At.UTC().Format("15:04:05Z"))
	if g.Do != "" {
		line("  %s; docs/runbook/%s.md", g.Do, g.Page)
	}
	for _, s := range g.Silent {
		line("  %s", out.Paint(cli.Red, "does not answer: "+cli.VisibleLine(s)))
	}
	line("")
	count := func(n *int64) string {
		if n == nil {
			return "unknown"
		}
		return cli.Thousands(*n)
	}
	rate := "unknown"
	if g.Rate != nil {
		rate = cli.Thousands(int64(*g.Rate + .5))
	}
	line("backlog %s (lag %s, pending %s, deferred %s), oldest %s", count(g.Backlog), count(g.Lag), count(g.Pending), count(g.Wait), g.Age)
	line("finished %s/s   dead letters %s   lost %s   shards %d, waiting %d", rate, count(g.Letters), count(g.Lost), g.Number, g.Waiting)
	line("in, last hour  %s", spark(g.In))
	line("")
	line("%s", out.Paint(cli.Bold, fmt.Sprintf("%-32s %-16s %6s %9s %6s %8s  %s", "MEMBER", "STATE", "SHARDS", "ENTRIES/S", "CPU", "MEMORY", "VERSION")))
	for _, m := range g.Members {
		roles := ""
		if m.Leads {
			roles += " leads"
		}
		if m.Dispatches {
			roles += " dispatches"
		}
		state := fmt.Sprintf("%-16s", signs[m.Level]+" "+m.State)
		line("%-32s %s %6d %9s %6.2f %5d MB  %s%s", limit(cli.VisibleLine(m.Name), 32), out.Paint(colors[m.Level], state), m.Shards,
			cli.Thousands(int64(m.Rate+.5)), m.CPU, m.Memory>>20, limit(cli.VisibleLine(m.Version), 16), roles)
	}
	for _, h := range g.Hot {
		line("%s", out.Paint(cli.Yellow, "hot: "+limit(cli.VisibleLine(h), max(20, width-5))))
	}
	if len(g.Open) > 0 {
		line("")
	}
	for i, s := range g.Open {
		if i == 8 {
			line("and %d more open incidents: processor incidents --open", len(g.Open)-i)
			break
		}
		line("%s", out.Paint(cli.Red, "open: "+limit(cli.VisibleLine(s), max(20, width-6))))
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func limit(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// spark draws values as blocks; unknown ones as blanks.
func spark(values []float64) string {
	top := 0.0
	for _, v := range values {
		top = max(top, v)
	}
	blocks := []rune("▁▂▃▄▅▆▇█")
	var b strings.Builder
	for _, v := range values {
		switch {
		case v < 0:
			b.WriteByte(' ')
		case top == 0:
			b.WriteRune(blocks[0])
		default:
			b.WriteRune(blocks[min(len(blocks)-1, int(v/top*float64(len(blocks))))])
		}
	}
	return b.String()
}
