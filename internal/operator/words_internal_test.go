package operator

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	storeadmin "github.com/trmtracking/processor/internal/store/admin"
)

func TestEveryIncidentHasWords(t *testing.T) {
	for kind := range incidentGuides {
		require.NotEmpty(t, incidentWords[kind], kind)
	}
	require.Equal(t, "shard 3 does not advance while others do", Incident{Kind: protocol.StalledShard, Subject: "3"}.String())
	require.Equal(t, "Postgres rejects rows that are not at fault", Incident{Kind: protocol.SinkRefuses}.String())
	require.Equal(t, "of tomorrow: x", Incident{Kind: "of_tomorrow", Subject: "x"}.String(), "of another version")
	silent := Incident{Kind: protocol.SilentMember, Subject: "one.A", Detail: json.RawMessage(`{"pid": 8513, "host": "vm", "shards": [0, 1]}`)}
	require.Contains(t, silent.Remedy(), "kill -KILL 8513 on host vm if it still runs, and start another unless a supervisor does")
	silent.Detail = json.RawMessage("{}")
	require.Equal(t, GuideOf(protocol.SilentMember).Remedy, silent.Remedy(), "nothing heard of it")
}

func TestTheDoctorNamesThePageOfACauseOfLosses(t *testing.T) {
	found := time.Now()
	for cause, page := range map[string]string{
		protocol.LossTrimmedUnread: sectionTrimmed, protocol.LossTrimmedPending: sectionTrimmed, protocol.LossFlush: sectionRedisLost,
		protocol.LossFailover: sectionRedisLost, protocol.LossRestored: sectionRestored,
	} {
		var d Diagnosis
		d.losses(&storeadmin.FleetStatus{LostSome: true, LostSince: &found, LostBy: []string{cause}})
		require.Contains(t, d.Findings[0].Remedy, see(page), cause)
	}
}

func TestAReplaySaysWhatItKept(t *testing.T) {
	require.EqualError(t, &KeptError{Sent: 50, Kept: 1}, "50 replayed, 1 refused and kept: edit it, then replay")
	require.EqualError(t, &KeptError{DryRun: true, Sent: 8, Kept: 2}, "8 of 10 would be replayed, 2 would fail: edit them first")
}

func TestFailingEntriesSayWhatBecomesOfThem(t *testing.T) {
	last := time.Date(2026, 11, 29, 15, 9, 1, 0, time.UTC)
	require.Empty(t, Failing{}.String())
	require.Equal(t, "1 entry cannot be stored and is tried again; it becomes a dead letter after the last attempt at about 15:09:01 UTC, or later if Postgres refuses most others too", Failing{Unstored: 1, Last: last}.String())
	require.Contains(t, Failing{Unread: 1, Unstored: 1, Last: last}.String(), "2 entries cannot be read or stored")
}
