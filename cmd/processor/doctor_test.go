package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/testenv"
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
	require.NoError(t, client.XGroupCreateConsumer(ctx, dep.Stream, dep.Group, "shard-63").Err())
	code, d = examined(dep, "SHARDS=")
	require.Equal(t, fault.Clean, code, "a queue from before a resize is no foreign program, and the fleet tells its number of shards: %+v", d.Findings)
	require.Equal(t, "healthy", d.Verdict)
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
	dep.Exec("insert into processor.requests (stream, group_name, kind, shard, requested_by, state, finished_at) values ($1, $2, 'recompute', 1, 'test', 'failed', now()), ($1, $2, 'erase', 1, 'test', 'failed', now() - interval '2 days')", dep.Stream, dep.Group)
	dep.Exec("update processor.shards set crash_count = 2 where shard = 1")
	dep.Exec("drop index positions_ts")
	_, d = examined(dep)
	require.Equal(t, operator.LevelError, d.has("schema: index on public.positions"))
	require.Equal(t, "none", d.has("ledger"), "tables are not asked when they may not be there")
	dep.Exec("create index positions_ts on positions (ts desc)")
	_, d = examined(dep)
	require.Equal(t, operator.LevelError, d.has("7 entries were lost"))
	require.Equal(t, operator.LevelError, d.has("incident: stalled_member m.1"))
	require.Equal(t, operator.LevelWarning, d.has("failed within the last day: 1 request"))
	require.Contains(t, d.remedy("1 request"), "ProcessorRequestFailed")
	require.Contains(t, d.Verdict, "trouble: ")
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

func TestTheDoctorSaysInOneLineThatNobodyIsAlive(t *testing.T) {
	dep := servicetest.New(t)
	p := dep.Run(servicetest.FourShards, "MEMBER_TTL=2s", "LEADER_TTL=1s")
	p.AwaitReady()
	dep.Publish(servicetest.Records(0, 3)...)
	dep.AwaitStored(3, 30*time.Second)
	dep.AwaitCount(4, "select count(*) from processor.shards where owner is not null")
	require.NoError(t, p.Kill())
	var d diagnosis
	testenv.Wait(t, 10*time.Second, func() error {
		if _, d = examined(dep); !d.Trouble {
			return errors.New(d.Verdict)
		}
		return nil
	})
	require.Equal(t, "trouble: fleet: no instance is alive: nothing is processed", d.Verdict, "whatever the owner columns say: %+v", d.Findings)

	dep.Exec("insert into processor.incidents (stream, group_name, kind, subject) select $1, $2, 'silent_member', 'm.' || n from generate_series(1, 59) n", dep.Stream, dep.Group)
	_, d = examined(dep)
	i := slices.IndexFunc(d.Findings, func(f operator.Finding) bool { return strings.HasPrefix(f.What, "silent_member ") })
	require.Equal(t, 59, d.Findings[i].Count)
	require.Contains(t, d.Findings[i].What, "and 56 more since")
	lag := servicetest.Spawn(t, dep.Environ(), "lag", "--json")
	require.Zero(t, lag.Exit(20*time.Second))
	var l operator.Lag
	require.NoError(t, json.Unmarshal([]byte(lag.Output()), &l))
	require.Len(t, l.Incidents, 59, "no incident is cut")
}

func TestARedisThatRefusesNewEntriesIsTroubleUntilThereIsRoom(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	dep.RedisURL = testenv.OwnServers(t, devenv.Options{Redis: true}).Redis.URL()
	p := dep.Run(servicetest.FourShards, "CLAIM_INTERVAL_MS=100")
	p.AwaitReady()
	dep.Publish(servicetest.Records(0, 3)...)
	dep.AwaitStored(3, 30*time.Second)
	code, d := examined(dep)
	require.Equal(t, fault.Clean, code, "%+v", d.Findings)

	client := dep.Client()
	open := "select count(*) from processor.incidents where kind = 'redis_refuses' and closed_at is null"
	for _, refusal := range []struct {
		code, verdict string
		ready         int
		begin, end    []any
	}{
		{"OOM", "trouble: Redis: is full: it refuses new entries", 200, []any{"config", "set", "maxmemory", "1"}, []any{"config", "set", "maxmemory", "0"}},
		{"NOREPLICAS", "trouble: Redis: refuses all writes (NOREPLICAS)", 503, []any{"config", "set", "min-replicas-to-write", "1"}, []any{"config", "set", "min-replicas-to-write", "0"}},
		{"READONLY", "is a replica, which accepts no writes", 503, []any{"replicaof", "127.0.0.1", "1"}, []any{"replicaof", "no", "one"}},
	} {
		require.NoError(t, client.Do(t.Context(), refusal.begin...).Err())
		dep.AwaitCount(1, open+" and subject = '"+refusal.code+"'")
		p.Await(`"code":"` + refusal.code + `"`)
		testenv.Wait(t, 20*time.Second, func() error {
			n, err := p.Metric(`processor_redis_refuses_writes{code="` + refusal.code + `"}`)
			ready, _, errReady := p.Readiness()
			if n != 1 || ready != refusal.ready {
				return fmt.Errorf("%s: metric %v, %w, ready %d, %w", refusal.code, n, err, ready, errReady)
			}
			return nil
		})
		_, d = examined(dep)
		require.Contains(t, fmt.Sprint(d.Verdict, d.Findings), refusal.verdict)
		require.Contains(t, d.Verdict, "trouble")
		require.Contains(t, d.remedy("incident: redis_refuses"), "docs/runbook/ProcessorRedisRefuses.md")

		require.NoError(t, client.Do(t.Context(), refusal.end...).Err())
		dep.AwaitCount(0, open)
		p.AwaitReady()
		dep.Publish(servicetest.Record(servicetest.IMEI, int64(10+len(refusal.code))))
		dep.AwaitCount(1, fmt.Sprintf("select count(*) from positions where ts = to_timestamp(%d)", 1_700_000_010+len(refusal.code)))
	}
	p.Await("Redis accepts new entries again")
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
	d.Verdict = "trouble: a"
	d.Findings = append(d.Findings, operator.Finding{Level: operator.LevelError, About: "c", What: "alike", Remedy: d.Findings[0].Remedy, Count: 7})
	require.NoError(t, printDiagnosis(&cli.Output{W: &b}, d))
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	require.Equal(t, "trouble: a", lines[0])
	require.Equal(t, "ok       b: good", lines[1])
	require.True(t, strings.HasPrefix(lines[2], "trouble  a: long words"))
	require.Contains(t, b.String(), "\ntrouble  c: 7 x alike\n         -> do this and that")
	require.Equal(t, 1, strings.Count(b.String(), "-> do this"), "the remedy is said once")
	for _, l := range lines {
		require.LessOrEqual(t, len(l), cli.Columns)
	}
}
