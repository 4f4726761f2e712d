package oracle_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// threeOf returns three records of each of two devices, device time against the
// order of sending, and the commits of a service that makes no mistake.
func threeOf(t *testing.T) (*oracle.Oracle, []oracle.Commit) {
	t.Helper()
	var sent []fleet.Sent
	var commits []oracle.Commit
	for d := range 2 {
		for n := range 3 {
			m := fleet.Message{DeviceID: fmt.Sprintf("device-%d", d), Time: time.Unix(int64(1000-n), 0)}
			sent = append(sent, fleet.Sent{ID: telemetry.EntryID{Ms: 1, Seq: uint64(10*d + n)}, Message: m})
		}
		for n := 2; n >= 0; n-- {
			commits = append(commits, oracle.Commit{
				Device: fmt.Sprintf("device-%d", d), TimeUS: int64(1000-n) * 1e6, AtUS: int64(100 + n), Member: "a",
			})
		}
	}
	o, err := oracle.New(logOf(t, sent))
	require.NoError(t, err)
	return o, commits
}

// P3: commits of a device follow the stream, whatever its device times.
func TestOrderFindsARowCommittedBeforeOneThatPrecedesIt(t *testing.T) {
	t.Parallel()
	o, commits := threeOf(t)
	verdict, err := o.Order(all(commits), oracle.OrderRules{})
	require.NoError(t, err)
	require.True(t, verdict.Good(), verdict.Examples)
	require.Equal(t, map[string]int64{"a": 6}, verdict.Members)
	var late uint64
	_, err = o.Order(all(commits), oracle.OrderRules{
		Shards: oracle.Always(1), Stored: func(c oracle.Commit, _ int, id oracle.ID) { late += uint64(c.AtUS) - id.Seq%10 },
	})
	require.NoError(t, err)
	require.EqualValues(t, 600, late, "each row with its own entry")

	commits[0].AtUS = 99 // the last sent of device-0
	verdict, err = o.Order(all(commits), oracle.OrderRules{})
	require.NoError(t, err)
	require.EqualValues(t, 1, verdict.Reordered)
	require.Len(t, verdict.Examples, 1)
}

func TestRowsOfOneTransactionMayBeInAnyOrder(t *testing.T) {
	t.Parallel()
	o, commits := threeOf(t)
	for i := range commits {
		commits[i].AtUS = 100
	}
	verdict, err := o.Order(all(commits), oracle.OrderRules{})
	require.NoError(t, err)
	require.True(t, verdict.Good(), verdict.Examples)
}

// P4: a row committed by a member that is no longer, or not yet, the owner.
func TestOrderFindsACommitOfAStaleOwner(t *testing.T) {
	t.Parallel()
	o, commits := threeOf(t)
	ownershipSpans := []oracle.OwnershipSpan{{Owner: "a", FromUS: 100}, {Owner: "", FromUS: 102}, {Owner: "b", FromUS: 103}}
	verdict, err := o.Order(all(commits), oracle.OrderRules{Spans: ownershipSpans, Shards: oracle.Always(1)})
	require.NoError(t, err)
	require.True(t, verdict.Good(), "a commit at the moment of the release is one before it: %v", verdict.Examples)

	require.Zero(t, verdict.Unjudged)
	commits[0].Member = ""
	verdict, err = o.Order(all(commits), oracle.OrderRules{Spans: ownershipSpans, Shards: oracle.Always(1)})
	require.NoError(t, err)
	require.EqualValues(t, 1, verdict.Unjudged, "who committed it is unknown")
	verdict, err = o.Order(all(commits), oracle.OrderRules{})
	require.NoError(t, err)
	require.EqualValues(t, len(commits), verdict.Unjudged, "no owner is known")

	for name, at := range map[string]int64{"before it took the shard": 99, "after its release": 104} {
		commits[1].AtUS = at
		verdict, err = o.Order(all(commits), oracle.OrderRules{Spans: ownershipSpans, Shards: oracle.Always(1)})
		require.NoError(t, err)
		require.EqualValues(t, 1, verdict.Stale, name)
	}
}
