package pipeline_test

import (
	"context"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// frozen is a trigger that refuses rows of before 2020 with a code that otherwise is one of
// the server: as a chunk that is frozen, damaged or moved to another storage does.
const frozen = `create function frozen() returns trigger language plpgsql as $$
begin
  if new.ts < '2020-01-01' then
    raise exception 'rows of this time are frozen' using errcode = '%s';
  end if;
  return new;
end
$$;
create trigger frozen before insert on positions for each row execute function frozen()`

// P6: a row whose time is refused ends as any that is refused, whatever the code says:
// everything else goes on, and it can be sent again once its time is taken.
func TestARowWhoseTimeIsRefusedIsGivenUpAlone(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"42501", "0A000", "XX000", "55000"} {
		for _, with := range []string{"beside others", "before all others", "after all others"} {
			t.Run(code+" "+with, func(t *testing.T) {
				t.Parallel()
				b := newBench(t)
				b.Exec(fmt.Sprintf(frozen, code))
				in := b.Start("one")
				b.AcquireAll(in)
				var others [][]string
				for i := range 200 {
					others = append(others, at(1+i%40, int64(i)))
				}
				old := fleet.Message{DeviceID: fleet.DeviceID(0), Codec: "8", Time: time.Unix(1_500_000_000, 0).UTC(), Latitude: 1, Longitude: 1, Satellites: 9}
				late, n := fleet.EntryFields(&old), len(others)
				var id telemetry.EntryID
				switch with {
				case "beside others":
					id = b.Publish(append([][]string{late}, others...)...)[0]
				case "before all others":
					id = b.Publish(late)[0]
					n = 0
				default:
					b.Publish(others...)
					b.Settled(20*time.Second, 0)
					id = b.Publish(late)[0]
				}
				letters := b.awaitDeadLetters(20*time.Second, 1)
				require.Equal(t, telemetry.ClassSink, letters[id].Class)
				require.Equal(t, "sink//"+code, letters[id].Fingerprint)
				require.Equal(t, 3, letters[id].Attempts)
				b.Settled(20*time.Second, 0)
				require.Equal(t, n, b.Count("select count(*) from positions"))
				require.Nil(t, in.WorkStatus().Refusal)

				b.Exec("drop trigger frozen on positions")
				dead, err := stream.NewDeadLetters(b.Client, stream.Config{Stream: b.Stream, Group: b.Group}, b.Stream+":dlq")
				require.NoError(t, err)
				_, ok, err := dead.Replay(t.Context(), letters[id].ID, letters[id].Entry.Fields)
				require.NoError(t, err)
				require.True(t, ok)
				b.Settled(20*time.Second, 0)
				require.Equal(t, 1, b.Count("select count(*) from positions where device_id = $1 and ts < '2020-01-01'", fleet.DeviceID(0)))
				in.End()
				require.NoError(t, in.Err)
			})
		}
	}
}

// A privilege that is missing for all rows ends the run at once, with the server's words,
// and gives no row up.
func TestAMissingPrivilegeEndsTheRun(t *testing.T) {
	t.Parallel()
	for name, seconds := range map[string]int64{"fresh": 100, "late": -100} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			u, err := url.Parse(b.PostgresURL)
			require.NoError(t, err)
			role := u.Path[1:] + "_role"
			b.Exec(fmt.Sprintf("create role %[1]s login; grant usage on schema processor to %[1]s; grant all on all tables in schema processor to %[1]s; "+
				"grant all on all sequences in schema processor to %[1]s; grant select, insert on positions to %[1]s", role))
			t.Cleanup(func() {
				_, err := b.Pool.Exec(context.Background(), "drop owned by "+role+"; drop role "+role)
				require.NoError(t, err)
			})
			u.User = url.User(role)
			b.PostgresURL = u.String()
			in := b.Start("one")
			b.AcquireAll(in)
			var entries [][]string
			for d := range 500 {
				entries = append(entries, at(d, 0))
			}
			b.Publish(entries...)
			b.Settled(20*time.Second, 0)
			b.Exec("revoke insert on positions from " + role)
			entries = entries[:0]
			for d := range 500 {
				entries = append(entries, at(d, seconds))
			}
			b.Publish(entries...)
			began := time.Now()
			select {
			case <-in.Ended:
			case <-time.After(20 * time.Second):
				require.Fail(t, "it runs on")
			}
			t.Logf("ended after %s", time.Since(began).Round(time.Millisecond))
			in.End()
			require.ErrorContains(t, in.Err, "permission denied for table positions")
			require.Empty(t, b.letters())
			require.Zero(t, b.Count("select count(*) from processor.deferred"))
		})
	}
}
