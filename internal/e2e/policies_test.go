package e2e_test

import (
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// A trigger that keeps rows out is found before and while it does, and what it keeps
// out is not counted as stored.
func TestRowsThatATriggerSwallowsAreNoneThatAreStored(t *testing.T) {
	dep := servicetest.New(t)
	dep.Exec("create function swallow() returns trigger language plpgsql as $$ begin if extract(epoch from new.ts)::bigint % 2 = 1 then return null; end if; return new; end $$")
	dep.Exec("create trigger swallows before insert on positions for each row execute function swallow()")
	verify := servicetest.Spawn(t, dep.Environ(), "migrate", "verify")
	require.Zero(t, verify.Exit(20*time.Second), verify.Output())
	require.Contains(t, verify.Output(), "swallows on public.positions")
	p := dep.Run(servicetest.FourShards, "CLAIM_INTERVAL_MS=100")
	p.AwaitReady()
	dep.Publish(servicetest.RecordsOfMany(0, 41)...)
	dep.AwaitStored(21, 30*time.Second)
	p.Await("a trigger swallows rows")
	dep.AwaitCount(1, "select count(*) from processor.incidents where kind = 'sink_refuses' and subject = 'trigger swallows' and closed_at is null")
	// Late records take another way: two of four are swallowed.
	dep.Publish(servicetest.Record(servicetest.IMEI, 100))
	dep.AwaitStored(22, 30*time.Second)
	dep.Publish(servicetest.Records(40, 4)...)
	dep.AwaitStored(24, 30*time.Second)
	for outcome, want := range map[string]float64{"stored": 24, "swallowed": 22} {
		testenv.Wait(t, 20*time.Second, func() error {
			if n, err := p.Metric(`processor_pipeline_records_total{outcome="` + outcome + `"}`); err != nil || n != want {
				return fmt.Errorf("want %v %s, have %v, %w", want, outcome, n, err)
			}
			return nil
		})
	}
}

// A column that is widened at run time is no fault of a row.
func TestAColumnThatIsWidenedPausesAndCostsNothing(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	p := dep.Run(servicetest.FourShards, "CLAIM_INTERVAL_MS=100", "DLQ_RETRY_DELAYS=100ms,100ms")
	p.AwaitReady()
	dep.Publish(servicetest.Records(0, 3)...)
	dep.AwaitStored(3, 30*time.Second)
	n := 3
	for column, types := range map[string][2]string{"speed": {"double precision", "real"}, "satellites": {"integer", "smallint"}, "latitude": {"numeric", "double precision"}} {
		dep.Exec("alter table positions alter " + column + " type " + types[0])
		dep.Publish(servicetest.Records(int64(10*n), 2)...)
		dep.AwaitCount(1, "select least(1, count(*)) from processor.incidents where kind = 'sink_refuses' and closed_at is null")
		dep.Exec("alter table positions alter " + column + " type " + types[1])
		n += 2
		dep.AwaitStored(n, 30*time.Second)
		dep.AwaitCount(0, "select count(*) from processor.incidents where kind = 'sink_refuses' and closed_at is null")
	}
	letters, err := dep.Client().XLen(t.Context(), dep.Stream+":dlq").Result()
	require.NoError(t, err)
	require.Zero(t, letters)
	require.Zero(t, p.Terminate())
}

// Policies that hide rows and rules that rewrite statements are found before an entry
// is acknowledged, not after.
func TestPoliciesAndRulesOnPositionsAreRefused(t *testing.T) {
	testenv.SkipIn(t, devenv.Pooled, "the pooler has one role for all")
	for name, damage := range map[string]string{
		"row security": "alter table positions enable row level security; alter table positions force row level security; create policy p on positions using (device_id = 'a')",
		"rule":         "create rule quiet as on insert to positions do instead nothing",
	} {
		t.Run(name, func(t *testing.T) {
			if name == "rule" {
				testenv.SkipIn(t, devenv.Hypertable, "hypertables have no rules")
			}
			dep := servicetest.New(t)
			u, err := url.Parse(dep.PostgresURL)
			require.NoError(t, err)
			role := u.Path[1:] + "_role" // of this database alone
			dep.Exec(fmt.Sprintf("create role %[1]s login; grant %[1]s to current_user; alter table positions owner to %[1]s; alter schema processor owner to %[1]s; "+
				"grant all on all tables in schema processor to %[1]s", role))
			defer dep.Exec("reassign owned by " + role + " to current_user; drop owned by " + role + "; drop role " + role)
			dep.Exec(damage)
			u.User = url.User(role)
			dep.Publish(servicetest.Records(0, 4)...)
			p := dep.Run("POSTGRES_URL="+u.String(), "MIGRATE=verify", servicetest.FourShards)
			require.Equal(t, 5, p.Exit(40*time.Second), p.Output())
			require.Contains(t, p.Output(), name+" on public.positions")
			verify := servicetest.Spawn(t, dep.Environ("POSTGRES_URL="+u.String()), "migrate", "verify")
			require.Equal(t, 5, verify.Exit(40*time.Second), verify.Output())
			pending, err := dep.Client().XLen(t.Context(), dep.Stream).Result()
			require.NoError(t, err)
			require.Equal(t, int64(4), pending)
		})
	}
}
