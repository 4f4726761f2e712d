package main

import (
	"context"
	"fmt"
	"strings"
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
rates of the last hour, members. q or Ctrl-C ends it. With --once, with --json and where
the output is no terminal it prints the overview once.`,
		Example: `  processor top
  processor top --once
  processor top --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := openRedis(cmd)
			if err != nil {
				return err
			}
			defer f.Close()
			out := outputOf(cmd)
			if once || out.JSON || !out.Terminal {
				g, _ := console.Look(cmd.Context(), f, nil)
				return out.Result(g, func() error { return out.Line("%s", glanceText(out, g, cli.Columns)) })
			}
			_, err = tea.NewProgram(&topModel{fleet: f, out: out}, tea.WithContext(cmd.Context())).Run()
			return err
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "print it once")
	return cmd
}

// topModel is the overview on a terminal.
type topModel struct {
	fleet  *operator.Fleet
	out    *cli.Output
	view   *console.View
	glance *console.Glance // nil before the first answer
	width  int
}

// looked is an answer.
type looked struct {
	glance console.Glance
	view   *console.View
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
	g, v := console.Look(ctx, m.fleet, m.view)
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
		m.glance, m.view = &msg.glance, msg.view
		return m, tea.Tick(topEvery, func(time.Time) tea.Msg { return lookAgain{} })
	case lookAgain:
		return m, m.look
	}
	return m, nil
}

// View draws the last answer.
func (m *topModel) View() tea.View {
	text := "asking the fleet ..."
	if m.glance != nil {
		width := m.width
		if width == 0 {
			width = cli.Columns
		}
		text = glanceText(m.out, *m.glance, width) + "\n\nq ends it"
	}
	v := tea.NewView(text)
	v.AltScreen = true
	return v
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
