package runbook_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/modules"
)

const monitoring = root + "deploy/monitoring/"

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

// eachSource calls see with the sources of the service of one kind.
func eachSource(t *testing.T, kind string, see func(file, text string)) {
	t.Helper()
	for _, folder := range []string{"cmd/processor", "coordination", "internal", "modules", "pipeline"} {
		require.NoError(t, filepath.WalkDir(root+folder, func(file string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || filepath.Ext(file) != kind || strings.HasSuffix(file, "_test.go") {
				return err
			}
			text, err := os.ReadFile(file)
			see(file, string(text))
			return err
		}))
	}
}

// inCode is the names of all metrics in the sources of the service: some are
// registered only under certain settings.
func inCode(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	eachSource(t, ".go", func(_, text string) {
		for _, m := range metricLiteral.FindAllStringSubmatch(text, -1) {
			names[m[1]] = true
		}
	})
	return names
}

var metricLiteral = regexp.MustCompile(`(?:Name: *|NewDesc\(|[a-z]\()"(processor_[a-z0-9_]+)"`)

func TestTheReferenceExplainsExactlyTheMetricsThereAre(t *testing.T) {
	b := readBook(t)
	explained := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(b.text["docs/reference/metrics.md"], -1) {
		explained[row[1]] = true
	}
	have := registered(t)
	maps.DeleteFunc(have, func(name string, _ bool) bool { return !strings.HasPrefix(name, "processor_") })
	for name := range inCode(t) {
		have[name] = true
	}
	require.Equal(t, slices.Sorted(maps.Keys(have)), slices.Sorted(maps.Keys(explained)))
	for page, text := range b.text {
		for _, m := range metricNames.FindAllString(text, -1) {
			require.True(t, isMetric(have, m) || strings.HasPrefix(m, "process_") || m == "processor_requests", "%s: %s is named and does not exist", page, m)
		}
	}
}

// Each step whose failures are counted is in the reference and in an alert.
func TestEachStepThatFailsAlerts(t *testing.T) {
	b := readBook(t)
	code, err := os.ReadFile(root + "pipeline/metrics.go")
	require.NoError(t, err)
	rules, err := os.ReadFile(monitoring + "rules.yml")
	require.NoError(t, err)
	steps := regexp.MustCompile(`errs\.WithLabelValues\("([a-z_]+)"\)`).FindAllStringSubmatch(string(code), -1)
	require.Greater(t, len(steps), 5)
	row := regexp.MustCompile("(?m)^\\| `processor_pipeline_errors_total` .*$").FindString(b.text["docs/reference/metrics.md"])
	for _, m := range steps {
		require.Regexp(t, `\b`+m[1]+`\b`, row)
		require.Regexp(t, `step=~"([a-z_]+\|)*`+m[1]+`(\||")`, string(rules))
	}
}

var (
	lossCause   = regexp.MustCompile(`(?m)^\tLoss\w+ += "([a-z_]+)"`)
	scriptCause = regexp.MustCompile(`\bcause = '([a-z_]+)'`)
	looseCause  = regexp.MustCompile(`Loss\{Cause: *"|\.Cause\b[^\n=]*[^=!]= "`)
)

// Each cause of a loss, in the code and in the scripts, is one that the metric has from
// the start, and the page of the alert says what to do.
func TestEachCauseOfALossIsInThePageOfItsAlert(t *testing.T) {
	b := readBook(t)
	var explained, constants []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| [^|]+ \\| [^|]+ \\|$").FindAllStringSubmatch(b.text[pagePath("ProcessorRecordsLost")], -1) {
		explained = append(explained, m[1])
	}
	require.ElementsMatch(t, protocol.LossCauses(), explained)
	types, err := os.ReadFile(root + "internal/protocol/types.go")
	require.NoError(t, err)
	for _, m := range lossCause.FindAllSubmatch(types, -1) {
		constants = append(constants, string(m[1]))
	}
	require.ElementsMatch(t, protocol.LossCauses(), constants)
	scripts := 0
	eachSource(t, ".lua", func(file, text string) {
		for _, m := range scriptCause.FindAllStringSubmatch(text, -1) {
			scripts++
			require.Contains(t, constants, m[1], file)
		}
	})
	require.Greater(t, scripts, 4)
	eachSource(t, ".go", func(file, text string) {
		require.NotRegexp(t, looseCause, text, "%s: name the cause by its constant", file)
	})
}

// isMetric reports whether a name in a query is one that an instance serves.
func isMetric(have map[string]bool, name string) bool {
	for _, suffix := range []string{"", "_bucket", "_sum", "_count"} {
		if base, ok := strings.CutSuffix(name, suffix); ok && have[base] {
			return true
		}
	}
	return false
}

// A figure that stands alone is of now: a range would show the last value of an hour
// for a fleet that is dead. Its colour says whether it is bad.
func TestFiguresOfTheDashboardAreOfNow(t *testing.T) {
	dashboard, err := os.ReadFile(monitoring + "dashboard.json")
	require.NoError(t, err)
	var board struct {
		Panels []struct {
			Title, Type string
			Targets     []struct{ Instant, Range bool }
			FieldConfig struct {
				Defaults struct{ Thresholds struct{ Steps []any } }
			}
		}
	}
	require.NoError(t, json.Unmarshal(dashboard, &board))
	figures := 0
	for _, p := range board.Panels {
		if p.Type != "stat" {
			continue
		}
		figures++
		require.Greater(t, len(p.FieldConfig.Defaults.Thresholds.Steps), 1, p.Title)
		for _, target := range p.Targets {
			require.True(t, target.Instant && !target.Range, p.Title)
		}
	}
	require.Greater(t, figures, 4)
}

func TestAlertsAndDashboardAskForMetricsThatExist(t *testing.T) {
	have := registered(t)
	maps.Copy(have, inCode(t))
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

// repository is where runbook_url leads; deploy/monitoring says how to change it.
const repository = "https://github.com/trmtracking/processor/blob/main/"

func TestEachAlertLeadsToItsOwnPage(t *testing.T) {
	b := readBook(t)
	text, err := os.ReadFile(monitoring + "rules.yml")
	require.NoError(t, err)
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert               string
				Labels, Annotations map[string]string
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(text, &rules))
	alerts := map[string]bool{}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" {
				continue
			}
			alerts[r.Alert] = true
			page := pagePath(r.Alert)
			require.Equal(t, repository+page, r.Annotations["runbook_url"], r.Alert)
			require.True(t, strings.HasPrefix(b.text[page], "# "+r.Alert+"\n"), "%s: its heading is the alert's name", page)
			require.Regexp(t, `(?m)^\| \[`+r.Alert+`\]\(`+page+`\) \| .* \| `+r.Labels["severity"]+` \|$`, b.text[frontPage])
		}
	}
	require.Greater(t, len(alerts), 15)
	for page := range b.text {
		if name := strings.TrimSuffix(path.Base(page), ".md"); strings.HasPrefix(name, "Processor") {
			require.True(t, alerts[name], "%s belongs to no alert", page)
		}
	}
}

// A counter has no increase from nothing to its first sample. The age of the process says
// whether it counted that in the window. What was scraped before does not: Prometheus may
// have been away, and a restart may keep the labels.
func TestAlertsSeeWhatIsCountedBeforeTheFirstScrape(t *testing.T) {
	text, err := os.ReadFile(monitoring + "rules.yml")
	require.NoError(t, err)
	alerts := regexp.MustCompile(`\(increase\((\w+)(\{.*\})?\[(\w+)\]\)\) > 0`).FindAllStringSubmatch(string(text), -1)
	require.Greater(t, len(alerts), 5)
	for _, m := range alerts {
		window, err := time.ParseDuration(m[3])
		require.NoError(t, err)
		require.Contains(t, string(text), fmt.Sprintf("(%s%s and on (job, instance) (time() - processor_start_time_seconds < %.0f)) > 0", m[1], m[2], window.Seconds()))
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
