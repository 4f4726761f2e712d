package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/httpserver"
	"github.com/trmtracking/processor/internal/operator"
)

// call runs one command line.
func call(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

func TestEveryCommandHasTheSameHelpStyle(t *testing.T) {
	root := newRootCommand()
	eachCommand(root, func(cmd *cobra.Command) {
		name := cmd.CommandPath()
		require.True(t, unicode.IsUpper([]rune(cmd.Short)[0]), "%s: Short begins with a capital", name)
		require.False(t, strings.HasSuffix(cmd.Short, "."), "%s: Short has no full stop", name)
		require.NotEmpty(t, cmd.Example, "%s has no example", name)
		for line := range strings.Lines(cmd.Example) {
			require.True(t, strings.HasPrefix(line, "  ") && strings.Contains(line, "processor"), "%s: example %q", name, line)
		}
		require.NotNil(t, cmd.RunE, "%s: RunE, so that errors have one way out", name)
		require.NotNil(t, cmd.Args, "%s: says which arguments it takes", name)

		code, help, _ := call(append(strings.Fields(name)[1:], "--help")...)
		require.Equal(t, fault.Clean, code)
		for line := range strings.Lines(help) {
			require.LessOrEqual(t, utf8.RuneCountInString(strings.TrimSuffix(line, "\n")), cli.Columns, "%s: %q", name, line)
		}
		require.Contains(t, help, "--json")
	})
}

func TestExitCodes(t *testing.T) {
	tests := []struct {
		give error
		want int
	}{
		{nil, fault.Clean},
		{errors.New("any"), fault.Finding},
		{fault.Exit(fault.Schema, errors.New("no index")), fault.Schema},
		{fmt.Errorf("start: %w", fault.Exit(fault.Dependency, nil)), fault.Dependency},
		{fmt.Errorf("start: %w", &config.Error{}), fault.Config},
	}
	for _, tt := range tests {
		require.Equal(t, tt.want, fault.ExitCode(tt.give), "%v", tt.give)
	}
	for want, c := range []int{fault.Clean, fault.Finding, fault.Unexpected, fault.Config, fault.Dependency, fault.Schema, fault.Identity} {
		require.Equal(t, want, c, "the codes are documented")
	}
}

func TestCommandLinesThatCannotBeUnderstood(t *testing.T) {
	for line, want := range map[string]string{
		"confg":            `unknown command "confg"; did you mean config?`,
		"config tble":      `unknown command "tble"; did you mean table?`,
		"version extra":    `unknown command "extra" for "processor version"`,
		"version --nope":   "unknown flag: --nope",
		"health --timeout": "flag needs an argument",

		"trace":               "want IMEI, have 0 arguments",
		"device show 1 2":     "want IMEI, have 2 arguments",
		"shards resize":       "want NUMBER, have 0 arguments",
		"shards resiz --help": `unknown command "resiz"; did you mean resize?`,
		"help nosuch":         `unknown command "nosuch"`,
		"help shards resiz":   `unknown command "resiz"; did you mean resize?`,
		"completion fsh":      `unknown command "fsh"; did you mean bash or fish or zsh?`,
	} {
		code, out, errs := call(strings.Fields(line)...)
		require.Equal(t, fault.Config, code, line)
		require.Empty(t, out, line)
		require.Contains(t, errs, want)
		require.Contains(t, errs, "--help", line)
	}
}

// A shell passes "" for a variable that is not set. It would select all, or nothing that is there.
func TestWhatIsGivenAsNothingIsRefusedByEveryCommand(t *testing.T) {
	refused := func(want string, args ...string) {
		t.Helper()
		code, out, errs := call(args...)
		require.Equal(t, fault.Config, code, "%q: %s", args, errs)
		require.Empty(t, out, "%q", args)
		require.Contains(t, errs, want, "%q", args)
	}
	eachCommand(newRootCommand(), func(cmd *cobra.Command) {
		if cmd.Args == nil || cmd.HasSubCommands() {
			return
		}
		path := strings.Fields(cmd.CommandPath())[1:]
		given := slices.Clone(path)
		for range strings.Fields(cmd.Use)[1:] {
			given = append(given, "1")
		}
		flags := func(f *pflag.Flag) {
			if _, mayBe := f.Annotations[mayBeEmpty]; mayBe {
				return
			}
			want := "--" + f.Name + " is empty"
			if f.Value.Type() != "string" && f.Value.Type() != "stringArray" {
				want = "--" + f.Name + ` ""`
			}
			refused(want, append(given, "--"+f.Name+"=")...)
		}
		cmd.LocalFlags().VisitAll(flags)
		cmd.InheritedFlags().VisitAll(flags)
		if len(given) > len(path) {
			refused("an argument is empty", append(given[:len(given)-1], "")...)
		}
	})
	_, err := (&operator.Fleet{}).Claim(t.Context(), operator.Claim{})
	require.ErrorContains(t, err, "name a member, a shard or a foreign consumer")
}

func TestConfigCheckNamesEveryProblemAndNoSecret(t *testing.T) {
	t.Setenv("REDIS_URL", "redis://u:s3cr3t@host:port")
	t.Setenv("POSTGRES_URL", "postgres://u:s3cr3t@host/db")
	t.Setenv("SHARDS", "0")
	t.Setenv("METRIC_PORT", "9191")
	code, out, errs := call("config", "check")
	require.Equal(t, fault.Config, code)
	require.Empty(t, out)
	require.Contains(t, errs, "REDIS_URL=")
	require.Contains(t, errs, `SHARDS="0" must be a whole number, 1 to 4096`)
	require.Contains(t, errs, "did you mean METRICS_PORT?")
	require.NotContains(t, errs, "s3cr3t")

	t.Setenv("REDIS_URL", "redis://u:s3cr3t@host")
	t.Setenv("SHARDS", "16")
	code, out, _ = call("config", "check")
	require.Equal(t, fault.Clean, code)
	require.Contains(t, out, "postgres://u:***@host/db")
	require.NotContains(t, out, "s3cr3t")

	require.Regexp(t, `LOG_LEVEL +info\n`, out, "as it is set")
	require.Regexp(t, `METRICS_HOST +\(not set\)\n`, out)

	code, out, _ = call("config", "check", "--json")
	require.Equal(t, fault.Clean, code)
	var got settingsJSON
	require.NoError(t, json.Unmarshal([]byte(out), &got))
	require.Contains(t, got.Settings, config.Setting{Name: "SHARDS", Value: "16"})
	require.Len(t, got.Warnings, 1)
	require.NotContains(t, out, "s3cr3t")
}

func TestConfigTableRenewsAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "configuration.md")
	require.NoError(t, os.WriteFile(file, []byte("# Book\n\n<!-- config:begin -->\noutdated\n<!-- config:end -->\nrest\n"), 0o644))
	code, _, errs := call("config", "table", "--write", file)
	require.Equal(t, fault.Clean, code, errs)
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Contains(t, string(text), "| `METRICS_PORT` | 9464 |")
	require.NotContains(t, string(text), "outdated")

	require.NoError(t, os.WriteFile(file, []byte("# Book\n"), 0o644))
	code, _, errs = call("config", "table", "--write", file)
	require.Equal(t, fault.Finding, code)
	require.Contains(t, errs, "<!-- config:begin -->")
}

func TestVersionSaysWhatWasBuilt(t *testing.T) {
	code, out, _ := call("version", "--json")
	require.Equal(t, fault.Clean, code)
	var b cli.Build
	require.NoError(t, json.Unmarshal([]byte(out), &b))
	require.Regexp(t, `^go1\.`, b.Go)
	require.NotEmpty(t, b.Version)
}

func TestHealthAsksTheInstance(t *testing.T) {
	s, err := httpserver.New(httpserver.Config{Host: "127.0.0.1", Checks: []string{"redis"}, CheckTimeout: 5 * time.Second},
		prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, s.Listen(t.Context()))
	_, port, err := net.SplitHostPort(s.Addr())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()

	t.Setenv("METRICS_PORT", port)
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	code, out, errs := call("health")
	require.Equal(t, fault.Finding, code)
	require.Equal(t, "not ready: redis\n  redis: not started yet\n", out)
	require.Empty(t, errs, "said once")

	s.Ready("redis", func(context.Context) error { return nil })
	code, out, _ = call("health", "--json")
	require.Equal(t, fault.Clean, code)
	require.JSONEq(t, `{"ready":true,"not_ready":[],"checks":{"redis":"ok"}}`, out)

	t.Setenv("METRICS_HOST", "0.0.0.0")
	code, out, _ = call("health")
	require.Equal(t, fault.Clean, code)
	require.Equal(t, "ready\n", out)

	cancel()
	require.NoError(t, <-ended)
	code, _, errs = call("health")
	require.Equal(t, fault.Finding, code)
	require.Contains(t, errs, "with the same METRICS_PORT")

	t.Setenv("METRICS_PORT", "0")
	code, _, _ = call("health")
	require.Equal(t, fault.Config, code)
}

func TestTablesFitAndAlign(t *testing.T) {
	var b bytes.Buffer
	out := &cli.Output{W: &b, Terminal: true}
	tab := cli.NewTable("SHARD", "OWNER", "LAG", "NOTE")
	tab.Row("shard-00", "alpha", 12, strings.Repeat("long ", 50))
	tab.Row("shard-01", nil, nil, "two\nlines\x1b[31m")
	tab.Row("shard-02", cli.Colored("beta", cli.Red), 1234567)
	require.NoError(t, out.Table(tab))
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	require.Len(t, lines, 4)
	for _, l := range lines {
		require.LessOrEqual(t, utf8.RuneCountInString(l), cli.Columns)
		require.NotContains(t, l, "\x1b", "no terminal, no colours, and none from data")
	}
	require.Equal(t, "SHARD     OWNER        LAG  NOTE", lines[0])
	require.True(t, strings.HasPrefix(lines[1], "shard-00  alpha         12  long long"))
	require.True(t, strings.HasSuffix(lines[1], "…"))
	require.Equal(t, "shard-01  unknown  unknown  two lines\\x1b[31m", lines[2])
	require.Equal(t, "shard-02  beta     1234567", strings.TrimRight(lines[3], " "))

	for _, width := range []int{160, 60} {
		b.Reset()
		out.Width = width
		require.NoError(t, out.Table(tab))
		longest := 0
		for line := range strings.Lines(b.String()) {
			longest = max(longest, utf8.RuneCountInString(strings.TrimSuffix(line, "\n")))
		}
		require.Equal(t, width, longest, "a table fills the terminal")
	}

	b.Reset()
	out.Width = 0
	out.Colors = true
	require.NoError(t, out.Table(tab))
	require.Contains(t, b.String(), "\x1b[31mbeta\x1b[0m   ", "padding counts what is seen")

	b.Reset()
	require.NoError(t, (&cli.Output{W: &b}).Table(tab))
	require.Contains(t, b.String(), strings.Repeat("long ", 50), "elsewhere nothing is cut")
	require.NotContains(t, b.String(), "…")

	b.Reset()
	fingerprint := "invalid/" + strings.Repeat("x", cli.Columns)
	tab = cli.NewTable("FINGERPRINT", "EXAMPLE")
	tab.Row(fingerprint, "a long example of it")
	require.NoError(t, out.Table(tab))
	require.Contains(t, b.String(), fingerprint, "what is copied into the next command is whole")
}

func TestNumbersForPeopleAreGroupedAndThingsInThePlural(t *testing.T) {
	require.Equal(t, "1 shard", cli.Count(1, "shard"))
	require.Equal(t, "0 shards", cli.Count(0, "shard"))
	require.Equal(t, "205,360 entries", cli.Count(int64(205360), "entry"))
	require.Equal(t, "1 entry was", cli.CountWere(1, "entry"))
	require.Equal(t, "2 shards were", cli.CountWere(2, "shard"))

	var b bytes.Buffer
	n := int64(205360)
	l := operator.Lag{Length: n, Pending: 7, Lag: &n}
	require.NoError(t, printLag(&cli.Output{W: &b}, &l))
	require.Regexp(t, `length +205,360\nlag +205,360\npending +7\n`, b.String())
	b.Reset()
	require.NoError(t, (&cli.Output{W: &b, JSON: true}).Result(l, nil))
	require.Contains(t, b.String(), `"length":205360,"lag":205360`, "programs get plain numbers")
	b.Reset()
	fences := &operator.Fences{}
	require.NoError(t, printFences(&cli.Output{W: &b}, fences))
	require.Equal(t, "no fences; see processor geofence import --help\n", b.String())
}
