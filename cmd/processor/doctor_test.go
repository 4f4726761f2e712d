package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// examined runs processor doctor and returns its findings.
func examined(dep *servicetest.Deployment, settings ...string) (code int, d diagnosis) {
	dep.T.Helper()
	p := servicetest.Spawn(dep.T, dep.Environ(append([]string{servicetest.FourShards}, settings...)...), "doctor", "--json")
	code = p.Exit(40 * time.Second)
	require.NoError(dep.T, json.Unmarshal([]byte(p.Output()), &d), p.Errors())
	for _, f := range d.Findings {
		require.Equal(dep.T, f.Level == levelOK, f.Remedy == "", "%+v: each finding has its remedy", f)
	}
	return code, d
}

// has returns the level of the first finding that contains a text.
func (d diagnosis) has(text string) string {
	i := slices.IndexFunc(d.Findings, func(f finding) bool { return strings.Contains(f.About+": "+f.What, text) })
	if i < 0 {
		return "none"
	}
	return d.Findings[i].Level
}

// remedy is that of the first finding that contains a text.
func (d diagnosis) remedy(text string) string {
	i := slices.IndexFunc(d.Findings, func(f finding) bool { return strings.Contains(f.About+": "+f.What, text) })
	if i < 0 {
		return "no such finding"
	}
	return d.Findings[i].Remedy
}

func TestTheDoctorFindsWhatIsWrongAndNothingElse(t *testing.T) {
	dep := servicetest.New(t)
	dep.Run(servicetest.FourShards).AwaitReady()
	dep.Publish(servicetest.Records(0, 3)...)
	dep.AwaitStored(3, 30*time.Second)
	code, d := examined(dep)
	require.Equal(t, exitClean, code, "%+v", d.Findings)
	for _, text := range []string{
		"Redis: version 7", "noeviction", "append-only file is on", "accepts writes", "commits are durable",
		"SHARDS is 4", "every shard has an owner", "nothing was lost", "the backlog is empty", "has everything this version needs",
	} {
		require.Equal(t, levelOK, d.has(text), "%s: %+v", text, d.Findings)
	}

	code, d = examined(dep, "SHARDS=8")
	require.Equal(t, exitFinding, code)
	require.Equal(t, levelError, d.has("SHARDS is 8 here and 4 for the fleet"))

	ctx, client := t.Context(), dep.Client()
	_, err := client.XReadGroup(ctx, &redis.XReadGroupArgs{
		Group: dep.Group, Consumer: "stranger", Streams: []string{dep.Stream, ">"}, Block: -1,
	}).Result()
	require.ErrorIs(t, err, redis.Nil)
	require.NoError(t, client.XGroupCreateConsumer(ctx, dep.Stream, dep.Group, "stranger").Err())
	code, d = examined(dep)
	require.Equal(t, exitFinding, code)
	require.Equal(t, levelError, d.has(`a foreign consumer "stranger" reads in our group, and holds nothing`))
	require.Contains(t, d.remedy("holds nothing"), sectionClaim)

	dep.Exec("insert into processor.losses (dedupe_key, stream, group_name, cause, entries, detected_by) values ('t', $1, $2, 'trimmed_unread', 7, 'test')", dep.Stream, dep.Group)
	dep.Exec("insert into processor.incidents (stream, group_name, kind, subject) values ($1, $2, 'stalled_member', 'm.1')", dep.Stream, dep.Group)
	dep.Exec("update processor.shards set crash_count = 2 where shard = 1")
	dep.Exec("drop index positions_ts")
	_, d = examined(dep)
	require.Equal(t, levelError, d.has("schema: index on public.positions"))
	require.Equal(t, "none", d.has("ledger"), "tables are not asked when they may not be there")
	dep.Exec("create index positions_ts on positions (ts desc)")
	_, d = examined(dep)
	require.Equal(t, levelError, d.has("7 entries were lost"))
	require.Equal(t, levelError, d.has("incident: stalled_member m.1"))
	require.Contains(t, d.remedy("stalled_member"), "see docs/runbook/ProcessorDown.md")
	require.Contains(t, d.remedy("7 entries were lost (trimmed_unread)"), sectionTrimmed)
	dep.Exec("insert into processor.losses (dedupe_key, stream, group_name, cause, detected_by) values ('u', $1, $2, 'flush', 'test')", dep.Stream, dep.Group)
	_, d = examined(dep)
	require.Contains(t, d.remedy("7 entries and more were lost (flush, trimmed_unread)"), sectionRedisLost)
	dep.Exec("update processor.losses set entries = null")
	_, d = examined(dep)
	require.Equal(t, levelError, d.has("entries lost, count unknown"), "what is unknown is not nothing")
	require.Equal(t, levelError, d.has("owners of 1 shard crashed without progress"))

	name := dep.PostgresURL[strings.LastIndexByte(dep.PostgresURL, '/')+1:]
	name, _, _ = strings.Cut(name, "?")
	dep.Exec(fmt.Sprintf("alter database %s set synchronous_commit = off", name))
	_, d = examined(dep)
	require.Equal(t, levelError, d.has("synchronous_commit is off"))
}

func TestTheDoctorSaysThatADatabaseBelongsToAnotherStream(t *testing.T) {
	d := &diagnosis{}
	d.fleet(config.Config{}, &store.FleetStatus{Fleet: "stream a, group b", Foreign: true})
	require.Equal(t, levelError, d.has("this database belongs to stream a, group b"))
}

func TestTheDoctorDistinguishesForeignConsumers(t *testing.T) {
	d := &diagnosis{}
	d.stream(config.Redis{Group: "g"}, &stream.ServerStatus{Foreign: []protocol.Consumer{
		{Name: "a", Pending: 3, Idle: time.Second},
		{Name: "b", Idle: time.Second},
		{Name: "c", Pending: 3, Idle: time.Hour},
		{Name: "d", Idle: time.Hour},
	}})
	for _, tt := range []struct{ what, level, remedy string }{
		{`"a" reads in our group, and holds 3 entries that it did not finish`, levelError, sectionClaim},
		{`"b" reads in our group, and holds nothing`, levelError, sectionClaim},
		{`"c" is silent for 1h0m0s, and holds 3 entries`, levelWarning, sectionClaim},
		{`"d" is silent for 1h0m0s, and holds nothing`, levelWarning, "the leader removes it"},
	} {
		require.Equal(t, tt.level, d.has(tt.what))
		require.Contains(t, d.remedy(tt.what), tt.remedy)
	}
}

func TestTheDoctorGoesOnWhenAServerIsAway(t *testing.T) {
	dep := servicetest.New(t)
	dep.Publish(servicetest.Records(0, 2)...)
	code, d := examined(dep, "REDIS_URL=redis://127.0.0.1:1")
	require.Equal(t, exitFinding, code)
	require.Equal(t, levelError, d.has("Redis: "))
	require.Equal(t, levelOK, d.has("commits are durable"))
	code, d = examined(dep, "POSTGRES_URL=postgres://nobody:hidden-word@127.0.0.1:1/none")
	require.Equal(t, exitFinding, code)
	require.Equal(t, levelError, d.has("Postgres: "))
	require.Equal(t, 1, strings.Count(fmt.Sprint(d.Findings), "connection refused"), "said once: %v", d.Findings)
	require.Equal(t, levelWarning, d.has("group "+dep.Group+": does not exist"))
	require.NotContains(t, fmt.Sprint(d.Findings), "hidden-word")
}

func TestTheDoctorsTextFitsAndEndsWithTheTrouble(t *testing.T) {
	var b strings.Builder
	d := &diagnosis{}
	d.add(levelError, "a", strings.Repeat("long words ", 30), "do "+strings.Repeat("this and that ", 20))
	d.ok("b", "good")
	require.NoError(t, d.print(&cli.Output{W: &b}))
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	require.Equal(t, "ok       b: good", lines[0])
	require.True(t, strings.HasPrefix(lines[1], "trouble  a: long words"))
	require.Contains(t, b.String(), "\n         -> do this and that")
	for _, l := range lines {
		require.LessOrEqual(t, len(l), cli.Columns)
	}
}

func TestEachIncidentHasAGuide(t *testing.T) {
	file, err := os.ReadFile("../../internal/protocol/incident.go")
	require.NoError(t, err)
	var kinds []string
	for _, m := range regexp.MustCompile(`(?m)^\t\w+ += "(\w+)"`).FindAllStringSubmatch(string(file), -1) {
		kinds = append(kinds, m[1])
	}
	require.ElementsMatch(t, kinds, slices.Collect(maps.Keys(incidentGuides)))
	for kind, g := range incidentGuides {
		require.NotEmpty(t, g.section, kind)
		require.NotEmpty(t, g.remedy, kind)
	}
}
