package runbook_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// prom is a Prometheus that scrapes instances, with our rules loaded.
type prom struct {
	t    *testing.T
	addr string
}

func startPrometheus(t *testing.T, instances ...*servicetest.Process) *prom {
	t.Helper()
	program, err := exec.LookPath("prometheus")
	if err != nil {
		t.Skip("SKIPPED: prometheus is not installed (Debian: prometheus), so the dashboard's queries were not executed")
	}
	dir := t.TempDir()
	rules, err := filepath.Abs(monitoring + "rules.yml")
	require.NoError(t, err)
	var targets []string
	for _, p := range instances {
		targets = append(targets, "'"+p.Addr()+"'")
	}
	file := filepath.Join(dir, "prometheus.yml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 1s}
rule_files: ['%s']
scrape_configs:
  - job_name: processor
    static_configs: [{targets: [%s]}]
`, rules, strings.Join(targets, ", ")), 0o600))
	port, err := devenv.FreePort()
	require.NoError(t, err)
	pr := &prom{t: t, addr: fmt.Sprintf("127.0.0.1:%d", port)}
	cmd := exec.Command(program, "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+pr.addr)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return pr
}

// ask runs a query and returns how many series it yields.
func (pr *prom) ask(query string) (int, error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + pr.addr + "/api/v1/query?query=" + url.QueryEscape(query))
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct{ Result []json.RawMessage }
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return 0, err
	}
	if answer.Status != "success" {
		return 0, fmt.Errorf("%s: %s", query, answer.Error)
	}
	return len(answer.Data.Result), nil
}

func TestEveryQueryOfTheDashboardAnswersForARunningFleet(t *testing.T) {
	testenv.Full(t)
	dep := servicetest.New(t)
	a, b := pair(dep, "one", "two")
	pr := startPrometheus(t, a, b)
	text, err := os.ReadFile(monitoring + "dashboard.json")
	require.NoError(t, err)
	exprs := regexp.MustCompile(`"expr": ("(?:[^"\\]|\\.)*")`).FindAllSubmatch(text, -1)
	require.Greater(t, len(exprs), 30)
	rules, err := os.ReadFile(monitoring + "rules.yml")
	require.NoError(t, err)
	var queries []string
	for _, m := range exprs {
		var expr string
		require.NoError(t, json.Unmarshal(m[1], &expr))
		queries = append(queries, strings.NewReplacer("$job", "processor", "$__rate_interval", "5s").Replace(expr))
	}
	for _, m := range regexp.MustCompile(`- record: (\S+)`).FindAllStringSubmatch(string(rules), -1) {
		queries = append(queries, m[1])
	}
	second := int64(0)
	for _, query := range queries {
		testenv.Wait(t, 60*time.Second, func() error {
			dep.Publish(servicetest.Records(second, 3)...)
			second += 3
			n, err := pr.ask(query)
			if err == nil && n == 0 {
				err = fmt.Errorf("%s: no answer", query)
			}
			return err
		})
	}
	t.Logf("%d queries answered", len(queries))
}
