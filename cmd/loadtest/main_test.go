package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/loadtest/scenarios"
)

// call runs one command line.
func call(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	return code, out.String(), errs.String()
}

// A wrong command line is found before anything is made or started.
func TestCommandLinesThatCannotBeUnderstood(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	sent := filepath.Join(temp, "sent.log")
	for line, want := range map[string]string{
		"lst":                             `unknown command "lst"; did you mean list?`,
		"run":                             "loadtest list explains the scenarios",
		"run splt":                        `scenario "splt": want split, scale, rolling, rescale, hot, failover, kill, stall, outage, poison, backlog, soak, chaos, cluster, containers; did you mean split?`,
		"run split --duraton 3s":          "unknown flag: --duraton; did you mean --duration?",
		"run split --seed x":              `--seed "x": want a whole number, 0 or more`,
		"run split --duration -3s":        "duration -3s: want more than 0",
		"run split --fleet foo":           `fleet "foo": want steady, incidents, polluted, hot or skewed`,
		"run split --slack 0":             "slack 0: want a number, at least 1",
		"run split --slack NaN":           "slack NaN: want a number, at least 1",
		"run split --slack Inf":           "slack +Inf: want a number, at least 1",
		"run split --redis-url redis://h": "name both Redis and Postgres",
		"run chaos --redis-url redis://h --postgres-url postgres://h": "--allow-faults",
		"bench --rounds 0":          "rounds 0: want at least 1",
		"bench --short --entries 5": "entries 5: want 20,000 to 5,000,000",
		"send":                      `required flag(s) "log", "redis-url" not set`,
		"send --redis-url http://u:s3cr3t@h --log " + sent:                    "--redis-url: want redis://user:password@host:6379/0",
		"send --redis-url redis://h --duration 0s --log " + sent:              "duration 0s: want more than 0",
		"verify --redis-url http://u:s3cr3t@h --postgres-url x --log " + sent: "--redis-url: want redis://",
	} {
		code, out, errs := call(strings.Fields(line)...)
		require.Equal(t, cli.ExitUsage, code, "%s: %s", line, errs)
		require.Empty(t, out, line)
		require.Contains(t, errs, want, line)
		require.Contains(t, errs, "\nsee loadtest", line)
		for _, leak := range []string{"wake", "strconv", "REDIS_URL", "s3cr3t", "logs are kept"} {
			require.NotContains(t, errs, leak, line)
		}
	}
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestSendEndsAtOnceWithoutRedis(t *testing.T) {
	path, began := filepath.Join(t.TempDir(), "sent.log"), time.Now()
	code, out, errs := call("send", "--redis-url", "redis://127.0.0.1:1", "--log", path, "--duration", "10m")
	require.Equal(t, exitFinding, code)
	require.Empty(t, out)
	require.Regexp(t, `^loadtest: nothing was sent, Redis \(--redis-url\) does not answer: .*refused\n$`, errs)
	require.Less(t, time.Since(began), 10*time.Second)
	require.NoFileExists(t, path)
}

func TestAReportThatCannotBeWrittenEndsARunBeforeItBegins(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	code, out, errs := call("run", "split", "--processor", "true", "--report", filepath.Join(temp, "missing", "x.html"))
	require.Equal(t, exitFinding, code)
	require.Empty(t, out)
	require.Regexp(t, "^loadtest: make the report: .*no such file or directory\n$", errs)
}

// A world that is missing is no verdict, which a program must not take for a good one.
func TestARunInAWorldThatIsMissingSaysSo(t *testing.T) {
	bin := t.TempDir()
	for _, program := range []string{"initdb", "postgres", "pg_config"} { // of a Postgres without TimescaleDB
		require.NoError(t, os.WriteFile(filepath.Join(bin, program), []byte("#!/bin/sh\necho "+bin), 0o755))
	}
	t.Setenv("PATH", bin)
	code, out, errs := call("run", "split", "--world", "hypertable", "--json")
	require.Equal(t, exitFinding, code)
	require.Regexp(t, `^\{"scenario":"split","skipped":"the world hypertable: TimescaleDB is not installed: .*"\}\n$`, out)
	require.Regexp(t, "^loadtest: the world hypertable: TimescaleDB is not installed: .*\n$", errs)
	code, out, _ = call("run", "split", "--world", "hypertable")
	require.Equal(t, exitFinding, code)
	require.Empty(t, out)
}

// What could not be cleaned up is said beside the verdict, not in place of it.
func TestAVerdictIsPrintedThoughNotAllCouldBeCleanedUp(t *testing.T) {
	var out, errs bytes.Buffer
	uncleaned := errors.New("remove the keys from Redis: refused")
	for _, missed := range [][]string{nil, {"lost: 17 entries, want 0"}} {
		out.Reset()
		errs.Reset()
		f := runFlags{json: true}
		verdict := f.publish(&out, &errs, scenarios.Scenario{}, &scenarios.Result{Scenario: "soak", Missed: missed}, nil)
		require.Equal(t, exitFinding, exitCode(errors.Join(verdict, fmt.Errorf("soak, seed 1: %w", uncleaned)), &errs))
		require.Contains(t, out.String(), `{"scenario":"soak",`)
		require.Regexp(t, "(?m)^loadtest: soak, seed 1: remove the keys from Redis: refused\n$", errs.String())
		for _, m := range missed {
			require.Contains(t, errs.String(), "MISSED: "+m+"\n")
		}
	}
	errs.Reset()
	require.Equal(t, exitFinding, exitCode(errMissed, &errs))
	require.Empty(t, errs.String(), "it has been printed")
}

// The same seed in another world, or with another plan, is another run.
func TestAMissedVerdictSaysWhatRepeatsTheRun(t *testing.T) {
	cmd := newRootCommand()
	run, _, err := cmd.Find([]string{"run"})
	require.NoError(t, err)
	require.NoError(t, run.ParseFlags(strings.Fields("--json --keep x --slack 4 --world turn --rate 100 --env A=1 --env B=2;3 --postgres-url postgres://u:s3cr3t@h/d --seed 9")))
	line := repeat(run.Flags(), &scenarios.Result{Scenario: "chaos", Seed: 7, World: devenv.Partitioned})
	require.Equal(t, "loadtest run chaos --seed 7 --env=A=1 --env='B=2;3' --postgres-url=URL --rate=100 --slack=4 --world=partitioned", line)

	var out, errs bytes.Buffer
	f := runFlags{json: true}
	require.ErrorIs(t, f.publish(&out, &errs, scenarios.Scenario{}, &scenarios.Result{Missed: []string{"x"}, World: devenv.Partitioned, Repeat: line}, nil), errMissed)
	require.Contains(t, errs.String(), "to repeat: "+line+"\n")
	require.Contains(t, out.String(), `"world":"partitioned"`)
	require.Contains(t, out.String(), `"repeat":"loadtest run chaos --seed 7 `)
}

func TestListForPrograms(t *testing.T) {
	code, out, errs := call("list", "--json")
	require.Equal(t, exitClean, code)
	require.Empty(t, errs)
	var list []map[string]any
	require.NoError(t, json.Unmarshal([]byte(out), &list))
	require.Equal(t, "split", list[0]["name"])
	require.Equal(t, false, list[0]["breaks"])
	plan, ok := list[0]["plan"].(map[string]any)
	require.True(t, ok)
	require.Equal(t, scenarios.All()[0].Plan.Duration.Seconds(), plan["duration_seconds"])
	for name := range plan {
		require.Regexp(t, "^[a-z_]+$", name)
	}
}

func TestACampaignThatMissesABranchFailsAndNamesIt(t *testing.T) {
	dir := t.TempDir()
	s, err := scenarios.ByName("chaos")
	require.NoError(t, err)
	require.NotEmpty(t, s.Reaches)
	for _, b := range s.Reaches {
		require.NoError(t, os.WriteFile(filepath.Join(dir, string(b)), []byte("++"), 0o600))
	}
	code, out, errs := call("reached", "chaos", dir)
	require.Equal(t, exitClean, code, errs)
	require.Contains(t, out, s.Reaches[0])
	require.NoError(t, os.Remove(filepath.Join(dir, string(s.Reaches[0]))))
	code, _, errs = call("reached", "chaos", dir)
	require.Equal(t, exitFinding, code)
	require.Contains(t, errs, "not reached by any run: "+string(s.Reaches[0])+"\n")
	code, _, _ = call("reached", "chaos", filepath.Join(dir, "none"))
	require.Equal(t, exitFinding, code)
}
