package runbook_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/modules"
)

const monitoring = "../../deploy/monitoring/"

var fqName = regexp.MustCompile(`fqName: "([^"]*)"`)

// registered is the names of all metrics that an instance registers.
func registered(t *testing.T) map[string]bool {
	t.Helper()
	cfg, err := config.Load([]string{
		"REDIS_URL=redis://127.0.0.1:1", "POSTGRES_URL=postgres://nobody@127.0.0.1:1/none", "METRICS_HOST=127.0.0.1", "METRICS_PORT=0",
	})
	require.NoError(t, err)
	service, err := modules.New(cfg, slog.New(slog.DiscardHandler), modules.Build{Version: "test"})
	require.NoError(t, err)
	all, ok := service.Metrics().(prometheus.Collector)
	require.True(t, ok)
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		all.Describe(descs)
	}()
	names := map[string]bool{}
	for d := range descs {
		names[fqName.FindStringSubmatch(d.String())[1]] = true
	}
	// A start that is told to stop closes what the constructors opened.
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, service.Run(stopped))
	return names
}

var metricNames = regexp.MustCompile(`\bprocessor_[a-z_]+|\bprocess_[a-z_]+`)

func TestTheRunbookExplainsExactlyTheMetricsThereAre(t *testing.T) {
	text, err := os.ReadFile(runbook)
	require.NoError(t, err)
	_, metrics, found := strings.Cut(string(text), "\n## Metrics\n")
	require.True(t, found)
	metrics, _, _ = strings.Cut(metrics, "\n## ")
	explained := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(metrics, -1) {
		explained[row[1]] = true
	}
	have := registered(t)
	maps.DeleteFunc(have, func(name string, _ bool) bool { return !strings.HasPrefix(name, "processor_") })
	require.Equal(t, slices.Sorted(maps.Keys(have)), slices.Sorted(maps.Keys(explained)))
	for _, m := range metricNames.FindAllString(string(text), -1) {
		require.True(t, isMetric(have, m) || strings.HasPrefix(m, "process_") || m == "processor_requests", "%s is named in the text and does not exist", m)
	}
}

// isMetric tells whether a name in a query is one that an instance serves.
func isMetric(have map[string]bool, name string) bool {
	for _, suffix := range []string{"", "_bucket", "_sum", "_count"} {
		if base, ok := strings.CutSuffix(name, suffix); ok && have[base] {
			return true
		}
	}
	return false
}

func TestAlertsAndDashboardAskForMetricsThatExist(t *testing.T) {
	have := registered(t)
	rules, err := os.ReadFile(monitoring + "rules.yml")
	require.NoError(t, err)
	dashboard, err := os.ReadFile(monitoring + "dashboard.json")
	require.NoError(t, err)
	var board struct {
		Panels []struct {
			Title   string
			Type    string
			Targets []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(dashboard, &board))
	require.Greater(t, len(board.Panels), 15)
	for _, p := range board.Panels {
		require.True(t, p.Type == "row" || len(p.Targets) > 0, "%s asks for nothing", p.Title)
	}
	for file, text := range map[string]string{"rules.yml": string(rules), "dashboard.json": string(dashboard)} {
		names := metricNames.FindAllString(text, -1)
		require.NotEmpty(t, names)
		for _, name := range names {
			require.True(t, isMetric(have, name), "%s: %s is not served by any instance", file, name)
		}
	}
}

func TestEveryAlertLeadsToItsSection(t *testing.T) {
	b := readBook(t)
	rules, err := os.ReadFile(monitoring + "rules.yml")
	require.NoError(t, err)
	text, err := os.ReadFile(runbook)
	require.NoError(t, err)
	alerts := regexp.MustCompile(`(?m)^ +- alert: (\S+)$`).FindAllStringSubmatch(string(rules), -1)
	links := regexp.MustCompile(`(?m)^ +runbook_url: OPERATIONS\.md#(\S+)$`).FindAllStringSubmatch(string(rules), -1)
	require.Len(t, links, len(alerts))
	for i, a := range alerts {
		anchor := links[i][1]
		require.True(t, b.anchors[anchor], "%s: #%s leads nowhere", a[1], anchor)
		require.Regexp(t, "(?m)^\\| `"+a[1]+"` \\|.*\\(#"+anchor+"\\) \\|$", string(text), "the table of alerts says the same")
	}
}

func TestTheRulesPassTheirOwnTests(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("SKIPPED: promtool is not installed (Debian: prometheus), so the alert rules were not tested")
	}
	for _, args := range [][]string{{"check", "rules", "rules.yml"}, {"test", "rules", "rules_test.yml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = monitoring
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
}
