package config_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/config"
)

// with is the smallest environment that is complete, and what a test adds.
func with(more ...string) []string {
	return append([]string{"REDIS_URL=redis://localhost:6379", "POSTGRES_URL=postgres://localhost/trm"}, more...)
}

// problems are the variables that Load refuses.
func problems(t *testing.T, environ []string) map[string]config.Problem {
	t.Helper()
	_, err := config.Load(environ)
	if err == nil {
		return nil
	}
	var all *config.Error
	require.ErrorAs(t, err, &all)
	found := map[string]config.Problem{}
	for _, p := range all.Problems {
		require.NotContains(t, found, p.Variable, "reported twice")
		found[p.Variable] = p
	}
	return found
}

func TestDefaultsAreCompleteAndValid(t *testing.T) {
	c, err := config.Load(with())
	require.NoError(t, err)
	require.Regexp(t, `^[A-Za-z0-9._-]+-[a-z2-7]{6}$`, c.Instance.ID)
	require.LessOrEqual(t, len(c.Instance.ID), 40)
	require.Equal(t, "telemetry:teltonika", c.Redis.Stream)
	require.Equal(t, "processor", c.Redis.Group)
	require.Equal(t, "telemetry:teltonika:dlq", c.Redis.DLQStream)
	require.Equal(t, "recompute:requests", c.Redis.RecomputeStream)
	require.Equal(t, c.Postgres.URL, c.Postgres.MigrateURL)
	require.Equal(t, max(2, runtime.GOMAXPROCS(0)), c.Pipeline.Workers)
	require.GreaterOrEqual(t, c.Postgres.MaxConns, 2*c.Pipeline.Workers+3)
	require.Equal(t, 30*time.Second, c.Coordination.ClaimThreshold())
	require.Equal(t, 2*time.Second, c.Coordination.ClaimInterval())
	require.Equal(t, slog.LevelInfo, c.Log.Level)
	require.Equal(t, 9464, c.Console.Port)
	require.Equal(t, config.Delays{30 * time.Second, 2 * time.Minute}, c.DeadLetters.RetryDelays)
	for _, s := range c.Settings() {
		if s.Name != "METRICS_HOST" && s.Name != "DEPLOY_ID" && s.Name != "GEOFENCE_QUERY" && s.Name != "TIMING_STREAM" && !strings.HasPrefix(s.Name, "CONSOLE_") { // empty is a value of its own there
			require.NotEmpty(t, s.Value, s.Name)
		}
	}
}

func TestEveryInstanceHasItsOwnName(t *testing.T) {
	a, err := config.Load(with())
	require.NoError(t, err)
	b, err := config.Load(with())
	require.NoError(t, err)
	require.NotEqual(t, a.Instance.ID, b.Instance.ID)
}

func TestEveryProblemIsReportedAtOnce(t *testing.T) {
	_, err := config.Load([]string{
		"REDIS_URL=http://localhost", "METRICS_PORT=99999", "SHARDS=many", "LOG_LEVEL=loud", "BATCH_MAX_AGE=25", "PPROF=perhaps",
		"MIGRATE=maybe", "INSTANCE_ID=a b", "DEPLOY_ID=a/b", "DRAIN_TIMEOUT=40s",
	})
	var all *config.Error
	require.ErrorAs(t, err, &all)
	require.Equal(t, 3, all.ExitCode())
	want := []string{
		`REDIS_URL="http://localhost" must be a URL such as redis://`,
		`METRICS_PORT="99999" must be a whole number, 0 to 65535`,
		`SHARDS="many" must be a whole number, 1 to 4096`,
		`LOG_LEVEL="loud" must be one of debug, info, warn, error`,
		`BATCH_MAX_AGE="25" must be a duration such as 500ms, 30s or 5m, 1ms to 10s`,
		`PPROF="perhaps" must be true or false`,
		`MIGRATE="maybe" must be one of auto, verify, off`,
		`INSTANCE_ID="a b" must be 1 to 40 letters`,
		`DEPLOY_ID="a/b" must be up to 40 letters`,
		`POSTGRES_URL must be set, or POSTGRES_URL_FILE to a file that holds it`,
		`DRAIN_TIMEOUT="40s" must leave room in SHUTDOWN_TIMEOUT=30s: drain 40s + release 3s + close 2s = 45s`,
	}
	for _, line := range want {
		require.Contains(t, err.Error(), "\n  "+line)
	}
	require.Len(t, all.Problems, len(want))
	require.True(t, strings.HasPrefix(err.Error(), "11 problems in the configuration:\n"))
}

// Every bound of every variable: the bound is taken, one step beyond is not.
func TestBoundsHold(t *testing.T) {
	fields := 0
	root := reflect.TypeFor[config.Config]()
	for i := range root.NumField() {
		for j := range root.Field(i).Type.NumField() {
			f := root.Field(i).Type.Field(j)
			name := f.Tag.Get("env")
			if f.Name == "URLFile" {
				continue // of URL
			}
			require.NotEmpty(t, name, "%s.%s has no variable", root.Field(i).Name, f.Name)
			require.NotEmpty(t, f.Tag.Get("help"), name)
			require.NotEqual(t, reflect.Struct, f.Type.Kind(), "%s: groups are flat", name)
			for tag, step := range map[string]int64{"min": -1, "max": 1} {
				text := f.Tag.Get(tag)
				if text == "" {
					numeric := f.Tag.Get("oneof") == "" && (f.Type.Kind() == reflect.Int || f.Type.Kind() == reflect.Int64)
					require.False(t, numeric, "%s has no %s", name, tag)
					continue
				}
				fields++
				at, beyond := text, ""
				if f.Type == reflect.TypeFor[time.Duration]() || f.Type == reflect.TypeFor[config.Delays]() {
					d, err := time.ParseDuration(text)
					require.NoError(t, err, name)
					beyond = (d + time.Duration(step)).String()
				} else {
					n, err := strconv.ParseInt(text, 10, 64)
					require.NoError(t, err, name)
					beyond = strconv.FormatInt(n+step, 10)
				}
				require.Contains(t, problems(t, with(name+"="+beyond))[name].Rule, f.Tag.Get("min")+" to "+f.Tag.Get("max"), "%s=%s", name, beyond)
				if p, refused := problems(t, with(name+"="+at))[name]; refused {
					require.NotContains(t, p.Rule, f.Tag.Get("min")+" to "+f.Tag.Get("max"), "%s=%s is inside", name, at)
				}
			}
		}
	}
	require.Greater(t, fields, 60)
}

func TestDelaysAreAList(t *testing.T) {
	c, err := config.Load(with("DLQ_RETRY_DELAYS=1s, 1m30s,1h"))
	require.NoError(t, err)
	require.Equal(t, config.Delays{time.Second, 90 * time.Second, time.Hour}, c.DeadLetters.RetryDelays)
	require.Contains(t, c.Settings(), config.Setting{Name: "DLQ_RETRY_DELAYS", Value: "1s,1m30s,1h0m0s"})
	for _, bad := range []string{"soon", "1s,,2s", "1s;2s", ",", "1s,1ms", "25h,1s"} {
		require.Equal(t, "must be durations such as 30s,2m, 100ms to 24h", problems(t, with("DLQ_RETRY_DELAYS="+bad))["DLQ_RETRY_DELAYS"].Rule, bad)
	}
}

func TestRulesAboutTwoVariables(t *testing.T) {
	tests := []struct {
		give  []string
		want  string // the variable that is refused
		shows string // in its rule
	}{
		{[]string{"SHUTDOWN_TIMEOUT=24s"}, "DRAIN_TIMEOUT", "20s + release 3s + close 2s = 25s"},
		{[]string{"STATEMENT_TIMEOUT=30s"}, "STATEMENT_TIMEOUT", "below CLAIM_THRESHOLD_MS=30000"},
		{[]string{"STALL_TIMEOUT=10s"}, "STATEMENT_TIMEOUT", "below STALL_TIMEOUT=10s"},
		{[]string{"LEADER_TTL=5s"}, "LEADER_TTL", "below MEMBER_TTL=5s"},
		{[]string{"CLAIM_INTERVAL_MS=30000"}, "CLAIM_INTERVAL_MS", "below CLAIM_THRESHOLD_MS=30000"},
		{[]string{"HANDOFF_BUDGET=30s"}, "HANDOFF_BUDGET", "below CLAIM_THRESHOLD_MS"},
		{[]string{"BATCH_MAX_AGE=200ms", "DRAIN_TIMEOUT=200ms"}, "BATCH_MAX_AGE", "below DRAIN_TIMEOUT=200ms"},
		{[]string{"DISPATCH_LEASE_TTL=900ms"}, "DISPATCH_LEASE_TTL", "2 x 500ms = 1s"},
		{[]string{"LOCK_TIMEOUT=11s"}, "LOCK_TIMEOUT", "at most STATEMENT_TIMEOUT=10s"},
		{[]string{"WORKERS=8", "POSTGRES_MAX_CONNS=10"}, "POSTGRES_MAX_CONNS", "at least 2 x WORKERS=8 + 3 = 19"},
		{[]string{"BATCH_MAX_RECORDS=40000"}, "BATCH_MAX_RECORDS", "at most MAX_IN_FLIGHT_RECORDS=32768"},
		{[]string{"READ_BATCH_RECORDS=40000"}, "READ_BATCH_RECORDS", "at most MAX_IN_FLIGHT_RECORDS=32768"},
		{[]string{"MAX_PAYLOAD_BYTES=2097152", "MAX_IN_FLIGHT_BYTES=1048576"}, "MAX_PAYLOAD_BYTES", "at most MAX_IN_FLIGHT_BYTES=1048576"},
		{[]string{"REDIS_DLQ_STREAM=telemetry:teltonika"}, "REDIS_DLQ_STREAM", "differ"},
		{[]string{"RECOMPUTE_STREAM=telemetry:teltonika"}, "RECOMPUTE_STREAM", "differ"},
		{[]string{"TIMING_STREAM=telemetry:teltonika"}, "TIMING_STREAM", "differ"},
		{[]string{"TIMING_STREAM=recompute:requests"}, "TIMING_STREAM", "differ"},
		{[]string{"TIMING_STREAM=two words"}, "TIMING_STREAM", "without spaces"},
		{[]string{"REDIS_TELEMETRY_STREAM=a b"}, "REDIS_TELEMETRY_STREAM", "without spaces"},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.give, " "), func(t *testing.T) {
			found := problems(t, with(tt.give...))
			require.Contains(t, found, tt.want)
			require.Contains(t, found[tt.want].Rule, tt.shows)
		})
	}
}

func TestWorkersAndConnectionsFitEachOther(t *testing.T) {
	c, err := config.Load(with("WORKERS=40"))
	require.NoError(t, err)
	require.Equal(t, 83, c.Postgres.MaxConns, "more workers get more connections")

	c, err = config.Load(with("POSTGRES_MAX_CONNS=5"))
	require.NoError(t, err)
	require.Equal(t, 1, c.Pipeline.Workers, "few connections mean few workers")

	c, err = config.Load(with("WORKERS=0"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, c.Pipeline.Workers, 2)
}

// Promise 2. The values cover what people really paste, broken ones included.
func TestSecretsAreNeverPrinted(t *testing.T) {
	const secret = "s3cr3t"
	redis := []string{
		"redis://:s3cr3t@host:6379/0", "rediss://user:s3cr3t@host", "unix://user:s3cr3t@/run/redis.sock?db=1",
		"redis://user:s3cr3t@host?password=s3cr3t&master_name=m", "redis://u:s3cr3t@a:1,redis://u:s3cr3t@b:2",
		"redis://u:s3cr3t/x@host", "redis://u:s3cr3t?x@host", "redis://u:s3cr3t#x@host", "redis://u:x/s3cr3t@host", "redis://u:12/s3cr3t@host",
		"redis://u:12?s3cr3t@host", "redis://u:p@s3cr3t@host", "redis://u:s3cr3t %zz@host", "redis://u:s3cr3t%zz@host", "u:s3cr3t@host", "://s3cr3t", "s3cr3t",
		"redis://:s3cr3t", "redis://u:s3cr3t@host:99999", "redis://u:s3cr3t@a:1,redis://u:other@b:2", "http://u:s3cr3t@host", "redis://u:s3cr3t@[::1",
	}
	postgres := []string{
		"postgres://user:s3cr3t@host/db", "postgres://user:s3cr3t@a:1,b:2/db?sslmode=require", "postgres://host/db?password=s3cr3t&sslpassword=s3cr3t",
		"postgresql://user:s3cr3t/x@host/db", "host=h user=u password=s3cr3t", "host=h password='s3cr3t with space'", "host=h password = s3cr3t",
		"host=h password=a\\ s3cr3t", "password=s3cr3t", "postgres://u:s3cr3t@host:port/db", "user:s3cr3t@host", "s3cr3t",
		"mysql://u:s3cr3t@host/db", "postgres://host/db?options=s3cr3t",
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "url")
	require.NoError(t, os.WriteFile(file, []byte("redis://u:s3cr3t@host:port"), 0o600))

	var environs [][]string
	for _, u := range redis {
		environs = append(environs, []string{"REDIS_URL=" + u, "POSTGRES_URL=postgres://h/d"}, []string{"REDIS_URL_FILE=redis://u:s3cr3t@h"})
	}
	for _, u := range postgres {
		environs = append(environs, []string{"REDIS_URL=redis://h", "POSTGRES_URL=" + u}, []string{"POSTGRES_MIGRATE_URL=" + u})
	}
	environs = append(environs, []string{"REDIS_URL_FILE=" + file}, []string{"POSTGRES_URL_FILE=" + file}, with("REDIS_URL_FILE="+file))

	for _, environ := range environs {
		c, err := config.Load(environ)
		var out bytes.Buffer
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "config", c, "redis", c.Redis, "url", c.Redis.URL, "pg", c.Postgres.URL)
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "config", c, "redis", c.Redis, "url", c.Redis.URL, "pg", c.Postgres)
		fmt.Fprintf(&out, "%v %+v %#v", c, c, c)
		for _, u := range []any{c.Redis.URL, c.Postgres.URL, c.Postgres.MigrateURL} {
			fmt.Fprintf(&out, "%d %x %q %v %#v", u, u, u, u, u)
		}
		fmt.Fprintf(&out, "%v %+v", err, c.Settings())
		text, jsonErr := json.Marshal(c)
		require.NoError(t, jsonErr)
		out.Write(text)
		require.NotContains(t, out.String(), secret, "%q", environ)
		require.NotContains(t, out.String(), fmt.Sprintf("%x", secret), "%q", environ)
	}
}

func TestHostUserAndDatabaseAreShown(t *testing.T) {
	tests := []struct{ give, want string }{
		{"redis://user:pw@host:6379/3", "redis://user:***@host:6379/3"},
		{"redis://:pw@host", "redis://:***@host"},
		{"redis://[::1]:6379", "redis://[::1]:6379"},
		{"redis://u:pw@a:1?master_name=m&sentinel_password=x", "redis://u:***@a:1?master_name=m"},
		{"redis://u:pw@a:1,b:2/0", "redis://u:***@a:1/0?addr=b:2"},
		{"unix://u:pw@/run/redis.sock?db=1", "unix://u:***@/run/redis.sock?db=1"},
	}
	for _, tt := range tests {
		c, err := config.Load(append(with(), "REDIS_URL="+tt.give))
		require.NoError(t, err)
		require.Equal(t, tt.want, c.Redis.URL.String())
	}
	require.Equal(t, "postgres://u:***@a:1,b:2/db?sslmode=require", config.PostgresURL("postgres://u:pw@a:1,b:2/db?sslmode=require&x=y").String())
	require.Equal(t, "host=h user=u dbname=d", config.PostgresURL("host=h user=u password=p dbname=d").String())
}

func TestSeveralRedisAddressesBecomeAddrParameters(t *testing.T) {
	tests := []struct {
		give, want string
		cluster    bool
	}{
		{"redis://a:1", "redis://a:1", false},
		{"redis://u:p,w@a:1", "redis://u:p,w@a:1", false},
		{"redis://u:p@a:1,b:2", "redis://u:p@a:1?addr=b%3A2", true},
		{"redis://u:p@a:1,redis://u:p@b:2,redis://c:3", "redis://u:p@a:1?addr=b%3A2&addr=c%3A3", true},
		{"rediss://a:1?addr=b:2", "rediss://a:1?addr=b:2", true},
		{"redis://a:1?addr=b:2&master_name=m", "redis://a:1?addr=b:2&master_name=m", false},
		{"redis://a:1,b:2?master_name=m", "redis://a:1?addr=b%3A2&master_name=m", false},
	}
	for _, tt := range tests {
		c, err := config.Load(append(with(), "REDIS_URL="+tt.give))
		require.NoError(t, err, tt.give)
		require.Equal(t, tt.want, c.Redis.URL.Reveal())
		require.Equal(t, tt.cluster, c.Redis.URL.Cluster(), tt.give)
		want := "telemetry:teltonika:dlq"
		if tt.cluster {
			want = "{telemetry:teltonika}:dlq"
		}
		require.Equal(t, want, c.Redis.DLQStream)
	}
	for _, give := range []string{"redis://a,rediss://b", "redis://u:p@a,redis://u:q@b", "redis://a/1,redis://b/2", "redis://a:1,,b:2"} {
		require.Contains(t, problems(t, append(with(), "REDIS_URL="+give)), "REDIS_URL", give)
	}
}

func TestSecretsComeFromFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(file, []byte("redis://u:pw@host:6379\n"), 0o600))
	c, err := config.Load([]string{"REDIS_URL_FILE=" + file, "POSTGRES_URL=postgres://h/d"})
	require.NoError(t, err)
	require.Equal(t, "redis://u:pw@host:6379", c.Redis.URL.Reveal())

	require.Contains(t, problems(t, with("REDIS_URL_FILE="+file))["REDIS_URL_FILE"].Rule, "together")

	missing := problems(t, []string{"REDIS_URL_FILE=" + file + ".not", "POSTGRES_URL=postgres://h/d"})
	require.Len(t, missing, 1)
	require.Contains(t, missing["REDIS_URL_FILE"].Rule, "readable file: no such file")

	require.NoError(t, os.WriteFile(file, []byte(" \n"), 0o600))
	require.Contains(t, problems(t, []string{"POSTGRES_URL=postgres://h/d", "REDIS_URL_FILE=" + file})["REDIS_URL_FILE"].Rule, "not empty")
}

func TestPartsLoadWithoutTheRest(t *testing.T) {
	console, err := config.LoadConsole([]string{"METRICS_PORT=9191", "SHARDS=nonsense"})
	require.NoError(t, err)
	require.Equal(t, 9191, console.Port)
	_, err = config.LoadConsole([]string{"METRICS_PORT=x"})
	require.ErrorContains(t, err, "METRICS_PORT")

	pg, err := config.LoadPostgres([]string{"POSTGRES_MIGRATE_URL=postgres://owner@h/d"})
	require.NoError(t, err)
	require.Equal(t, "postgres://owner@h/d", pg.MigrateURL.Reveal())
	_, err = config.LoadPostgres(nil)
	require.ErrorContains(t, err, "POSTGRES_URL")

	redis, err := config.LoadRedis([]string{"REDIS_URL=redis://h"})
	require.NoError(t, err)
	require.Equal(t, "telemetry:teltonika:dlq", redis.DLQStream)
}

func TestMisspeltVariablesAreNamed(t *testing.T) {
	found := config.LikelyTypos([]string{"METRIC_PORT=1", "REDIS_URI=redis://u:s3cr3t@h", "SHARD=3", "log_level=debug", "PATH=/bin", "HOSTNAME=x", "REDIS_URL=y", "POSTGRES_URL_FILE=z", "POSTGRES_USER=u", "POSTGRES_DB=d", "METRICS_HOST=h", "PORT=1"})
	require.Equal(t, []string{
		"METRIC_PORT is set but is not a known variable; did you mean METRICS_PORT?",
		"REDIS_URI is set but is not a known variable; did you mean REDIS_URL?",
		"SHARD is set but is not a known variable; did you mean SHARDS?",
		"log_level is set but is not a known variable; did you mean LOG_LEVEL?",
	}, found)
	for _, v := range config.Variables() {
		require.Empty(t, config.LikelyTypos([]string{v.Name + "=x"}), "our own name")
	}
}

func TestEveryVariableIsInTheTableAndTheHelp(t *testing.T) {
	vars := config.Variables()
	require.Greater(t, len(vars), 50)
	table, help := config.Markdown(), config.Help(100)
	names := map[string]bool{}
	for _, v := range vars {
		require.False(t, names[v.Name], "%s twice", v.Name)
		names[v.Name] = true
		require.Equal(t, 1, strings.Count(table, "| `"+v.Name+"` |"))
		require.Contains(t, help, "  "+v.Name+" (")
		require.LessOrEqual(t, len(v.Name), 24)
	}
	require.Equal(t, len(vars)+2, strings.Count(table, "\n"))
	for line := range strings.Lines(help) {
		require.LessOrEqual(t, len(strings.TrimSuffix(line, "\n")), 100, line)
	}
}

// Between the markers of docs/reference/configuration.md is the table of
// this version; `processor config table --write docs/reference/configuration.md` renews it.
func TestOperationsTableIsUpToDate(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference/configuration.md")
	require.NoError(t, err)
	renewed, err := config.Renew(string(text))
	require.NoError(t, err)
	require.True(t, renewed == string(text), "the table is stale; run: processor config table --write docs/reference/configuration.md") //nolint:testifylint // not both whole texts
}

func TestRenewReplacesOnlyWhatIsBetweenTheMarkers(t *testing.T) {
	got, err := config.Renew("before\n<!-- config:begin -->\nold\n<!-- config:end -->\nafter\n")
	require.NoError(t, err)
	require.Equal(t, "before\n<!-- config:begin -->\n\n"+config.Markdown()+"\n<!-- config:end -->\nafter\n", got)
	again, err := config.Renew(got)
	require.NoError(t, err)
	require.Equal(t, got, again)
	for _, text := range []string{"", "<!-- config:begin -->", "<!-- config:end --> <!-- config:begin -->"} {
		_, err = config.Renew(text)
		require.ErrorIs(t, err, config.ErrNoMarkers)
	}
}

func TestAddressesNameHostsAndPortsOnly(t *testing.T) {
	t.Parallel()
	for give, want := range map[string]string{
		"redis://u:s3cr3t@host/0": "host:6379",
		"redis://[::1]":           "[::1]:6379",
		"redis://":                "localhost:6379",
		"redis://a:1,b":           "a:1, b:6379",
		"redis://a:1,redis://b:2": "a:1, b:2",
		"rediss://u:s3cr3t@a:1/0?addr=b:2&master_name=trackers": "a:1, b:2",
		"redis://a/0?master_name=trackers":                      "a:26379",
		"unix:///run/redis.sock":                                "/run/redis.sock",
	} {
		require.Equal(t, want, config.RedisURL(give).Addresses(), give)
	}
	require.NotContains(t, config.RedisURL("redis://u:s3/cr3t@host").Addresses(), "s3")
}

func TestAFenceQueryThatDoesNotReadIsRefused(t *testing.T) {
	t.Parallel()
	for query, good := range map[string]bool{
		"":                                     true,
		"select 1":                             true,
		" SELECT(1)":                           true,
		"-- the yards\n/* all */ (select 1)":   true,
		"with a as (select 1) select * from a": true,
		"table fences":                         true,
		"delete from x":                        false,
		"selection":                            false,
		"-- nothing":                           false,
		"/* open select 1":                     false,
	} {
		_, err := config.Load([]string{"REDIS_URL=redis://h", "POSTGRES_URL=postgres://h/d", "GEOFENCE_QUERY=" + query})
		if good {
			require.NoError(t, err, query)
		} else {
			require.ErrorContains(t, err, "GEOFENCE_QUERY", query)
		}
	}
}

func TestWriteNeedsProofOfWhoActs(t *testing.T) {
	for _, tt := range []struct {
		environ []string
		want    string
	}{
		{[]string{"CONSOLE=write"}, "CONSOLE_TOKEN_FILE or CONSOLE_USER_HEADER"},
		{[]string{"CONSOLE=write", "CONSOLE_TOKEN=short"}, "at least 16 characters"},
		{[]string{"CONSOLE=write", "CONSOLE_USER_HEADER=X-User"}, "needs CONSOLE_TRUSTED_PROXIES"},
		{[]string{"CONSOLE_TRUSTED_PROXIES=10.0.0.0/8, here"}, "must be addresses or networks"},
		{[]string{"CONSOLE_TILES=tiles.example.com"}, "must be a URL with {z}"},
		{[]string{"CONSOLE=write", "CONSOLE_TOKEN=0123456789abcdef"}, ""},
		{[]string{"CONSOLE=write", "CONSOLE_USER_HEADER=X-User", "CONSOLE_TRUSTED_PROXIES=10.0.0.0/8,::1"}, ""},
	} {
		c, err := config.Load(with(tt.environ...))
		if tt.want == "" {
			require.NoError(t, err, tt.environ)
			require.NotContains(t, fmt.Sprintf("%v %+v %#v %s %q %x", c, c, c.Console, c.Console.Token, c.Console.Token, c.Console.Token), "0123456789abcdef")
			continue
		}
		require.ErrorContains(t, err, tt.want, tt.environ)
		require.NotContains(t, err.Error(), "short", tt.environ)
	}
}
