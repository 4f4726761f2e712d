package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// diagnosis is the output of processor doctor.
type diagnosis struct{ operator.Diagnosis }

// examined runs processor doctor and returns its findings.
func examined(dep *servicetest.Deployment, settings ...string) (code int, d diagnosis) {
	dep.T.Helper()
	p := servicetest.Spawn(dep.T, dep.Environ(append([]string{servicetest.FourShards}, settings...)...), "doctor", "--json")
	code = p.Exit(40 * time.Second)
	require.NoError(dep.T, json.Unmarshal([]byte(p.Output()), &d), p.Errors())
	for _, f := range d.Findings {
		require.Equal(dep.T, f.Level == operator.LevelOK, f.Remedy == "", "%+v: each finding has its remedy", f)
	}
	return code, d
}

// has returns the level of the first finding that contains a text.
func (d diagnosis) has(text string) string {
	i := slices.IndexFunc(d.Findings, func(f operator.Finding) bool { return strings.Contains(f.About+": "+f.What, text) })
	if i < 0 {
		return "none"
	}
	return d.Findings[i].Level
}

// remedy is that of the first finding that contains a text.
func (d diagnosis) remedy(text string) string {
	i := slices.IndexFunc(d.Findings, func(f operator.Finding) bool { return strings.Contains(f.About+": "+f.What, text) })
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
	require.Equal(t, fault.Clean, code, "%+v", d.Findings)
	for _, text := range []string{
		"Redis: version 7", "noeviction", "append-only file is on", "accepts writes", "commits are durable",
		"SHARDS is 4", "every shard has an owner", "nothing was lost", "the backlog is empty", "has everything this version needs",
	} {
		require.Equal(t, operator.LevelOK, d.has(text), "%s: %+v", text, d.Findings)
	}

	code, d = examined(dep, "SHARDS=8")
	require.Equal(t, fault.Finding, code)
	require.Equal(t, operator.LevelError, d.has("SHARDS is 8 here and 4 for the fleet"))

	ctx, client := t.Context(), dep.Client()
	_, err := client.XReadGroup(ctx, &redis.XReadGroupArgs{
		Group: dep.Group, Consumer: "stranger", Streams: []string{dep.Stream, ">"}, Block: -1,
	}).Result()
	require.ErrorIs(t, err, redis.Nil)
	require.NoError(t, client.XGroupCreateConsumer(ctx, dep.Stream, dep.Group, "stranger").Err())
	code, d = examined(dep)
	require.Equal(t, fault.Finding, code)
	require.Equal(t, operator.LevelError, d.has(`a foreign consumer "stranger" reads in our group, and holds nothing`))
	require.Contains(t, d.remedy("holds nothing"), "ProcessorForeignConsumer")

	dep.Exec("insert into processor.losses (dedupe_key, stream, group_name, cause, entries, detected_by) values ('t', $1, $2, 'trimmed_unread', 7, 'test')", dep.Stream, dep.Group)
	dep.Exec("insert into processor.incidents (stream, group_name, kind, subject) values ($1, $2, 'stalled_member', 'm.1')", dep.Stream, dep.Group)
	dep.Exec("update processor.shards set crash_count = 2 where shard = 1")
	dep.Exec("drop index positions_ts")
	_, d = examined(dep)
	require.Equal(t, operator.LevelError, d.has("schema: index on public.positions"))
	require.Equal(t, "none", d.has("ledger"), "tables are not asked when they may not be there")
	dep.Exec("create index positions_ts on positions (ts desc)")
	_, d = examined(dep)
	require.Equal(t, operator.LevelError, d.has("7 entries were lost"))
	require.Equal(t, operator.LevelError, d.has("incident: stalled_member m.1"))
	require.Contains(t, d.remedy("stalled_member"), "see docs/runbook/ProcessorDown.md")
	require.Contains(t, d.remedy("7 entries were lost (trimmed_unread)"), "ProcessorRecordsLost")
	dep.Exec("insert into processor.losses (dedupe_key, stream, group_name, cause, detected_by) values ('u', $1, $2, 'flush', 'test')", dep.Stream, dep.Group)
	_, d = examined(dep)
	require.Contains(t, d.remedy("7 entries and more were lost (flush, trimmed_unread)"), "ProcessorRedisLostItsData")
	dep.Exec("update processor.losses set entries = null")
	_, d = examined(dep)
	require.Equal(t, operator.LevelError, d.has("entries lost, count unknown"), "what is unknown is not nothing")
	require.Equal(t, operator.LevelError, d.has("owners of 1 shard crashed without progress"))

	name := dep.PostgresURL[strings.LastIndexByte(dep.PostgresURL, '/')+1:]
	name, _, _ = strings.Cut(name, "?")
	dep.Exec(fmt.Sprintf("alter database %s set synchronous_commit = off", name))
	_, d = examined(dep)
	require.Equal(t, operator.LevelError, d.has("synchronous_commit is off"))
}

func TestTheDoctorGoesOnWhenAServerIsAway(t *testing.T) {
	dep := servicetest.New(t)
	dep.Publish(servicetest.Records(0, 2)...)
	code, d := examined(dep, "REDIS_URL=redis://127.0.0.1:1")
	require.Equal(t, fault.Finding, code)
	require.Equal(t, operator.LevelError, d.has("Redis: "))
	require.Equal(t, operator.LevelOK, d.has("commits are durable"))
	code, d = examined(dep, "POSTGRES_URL=postgres://nobody:hidden-word@127.0.0.1:1/none")
	require.Equal(t, fault.Finding, code)
	require.Equal(t, operator.LevelError, d.has("Postgres: "))
	require.Equal(t, 1, strings.Count(fmt.Sprint(d.Findings), "connection refused"), "said once: %v", d.Findings)
	require.Equal(t, operator.LevelWarning, d.has("group "+dep.Group+": does not exist"))
	require.NotContains(t, fmt.Sprint(d.Findings), "hidden-word")
}

func TestTheDoctorsTextFitsAndEndsWithTheTrouble(t *testing.T) {
	var b strings.Builder
	d := &operator.Diagnosis{Findings: []operator.Finding{
		{Level: operator.LevelError, About: "a", What: strings.Repeat("long words ", 30), Remedy: "do " + strings.Repeat("this and that ", 20)},
		{Level: operator.LevelOK, About: "b", What: "good"},
	}}
	require.NoError(t, printDiagnosis(&cli.Output{W: &b}, d))
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	require.Equal(t, "ok       b: good", lines[0])
	require.True(t, strings.HasPrefix(lines[1], "trouble  a: long words"))
	require.Contains(t, b.String(), "\n         -> do this and that")
	for _, l := range lines {
		require.LessOrEqual(t, len(l), cli.Columns)
	}
}
