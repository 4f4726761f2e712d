package config_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/config"
)

func TestSeveralStreamsAreAListOrARange(t *testing.T) {
	for give, want := range map[string]string{
		"telemetry:teltonika":      "telemetry:teltonika",
		"a, b,c":                   "a b c",
		"telemetry:{0..3}":         "telemetry:0 telemetry:1 telemetry:2 telemetry:3",
		"{telemetry:{08..10}}, x":  "{telemetry:08} {telemetry:09} {telemetry:10} x",
		"{telemetry}:a,telemetry:": "{telemetry}:a telemetry:",
	} {
		c, err := config.Load(with("REDIS_TELEMETRY_STREAM=" + give))
		require.NoError(t, err, give)
		require.Equal(t, want, strings.Join(c.Redis.Streams(), " "))
		all := c.PerStream()
		records, workers := 0, 0
		for i, one := range all {
			name := c.Redis.Streams()[i]
			require.Equal(t, name, one.Redis.Stream)
			require.Equal(t, name+":dlq", one.Redis.DLQStream)
			records += one.Pipeline.MaxInFlightRecords
			workers += one.Pipeline.Workers
		}
		require.Equal(t, 32768, all[0].Pipeline.MaxInFlightRecords, "fewer would make batches small")
		require.LessOrEqual(t, records, c.Pipeline.MaxInFlightRecords, "together they hold no more than is set")
		require.GreaterOrEqual(t, c.Postgres.MaxConns, 2*workers+3)
		if len(all) == 1 {
			require.Equal(t, c, all[0])
		}
	}
}

func TestBadListsOfStreamsAreRefused(t *testing.T) {
	const cluster = "REDIS_URL=redis://a:1,b:2"
	for _, tt := range []struct {
		environ []string
		want    string
	}{
		{[]string{"REDIS_TELEMETRY_STREAM=a,,b"}, "one of them is empty"},
		{[]string{"REDIS_TELEMETRY_STREAM=a,b,a"}, "is listed twice"},
		{[]string{"REDIS_TELEMETRY_STREAM=t:{0..7},t:3"}, "is listed twice"},
		{[]string{"REDIS_TELEMETRY_STREAM=t:{7..0}"}, "begin is behind its end"},
		{[]string{"REDIS_TELEMETRY_STREAM=t:{0..3}:{0..3}"}, "more than one range"},
		{[]string{"REDIS_TELEMETRY_STREAM=t:{0..999}"}, "at most 64 streams, since"},
		{[]string{"REDIS_TELEMETRY_STREAM=t:{0..99999999999999999999}"}, "begin is behind its end"},
		{[]string{"REDIS_TELEMETRY_STREAM=a,a:dlq"}, "dead letters of a"},
		{[]string{"REDIS_TELEMETRY_STREAM=a,b", "REDIS_DLQ_STREAM=c"}, "must be unset with several streams"},
		{[]string{"REDIS_TELEMETRY_STREAM=a,b", "REDIS_DLQ_STREAM=c"}, "REDIS_TELEMETRY_STREAM=NAME processor dlq list"},
		{[]string{"REDIS_TELEMETRY_STREAM=a,recompute:requests"}, "must differ from RECOMPUTE_STREAM"},
		{[]string{"REDIS_TELEMETRY_STREAM=a,{a}:processor:members"}, "a key that the group keeps for a"},
		{[]string{"REDIS_TELEMETRY_STREAM=a,b", "RECOMPUTE_STREAM=b:dlq"}, "dead letters of b"},
		{[]string{"REDIS_TELEMETRY_STREAM=a,b} c"}, "without spaces"},
		{[]string{"REDIS_TELEMETRY_STREAM=a,b}", cluster}, "hash tag"},
		{[]string{"REDIS_TELEMETRY_STREAM=t:{0..63}", "MAX_IN_FLIGHT_RECORDS=4096", "BATCH_MAX_RECORDS=100", "READ_BATCH_RECORDS=100", "MAX_IN_FLIGHT_BYTES=16777216"}, "for each of 64 streams"},
		{[]string{"REDIS_TELEMETRY_STREAM=t:{0..63}", "MAX_IN_FLIGHT_RECORDS=4000", "READ_BATCH_RECORDS=100"}, "at least 64 for each stream, 64 of them"},
		{[]string{"MAX_IN_FLIGHT_RECORDS=63", "BATCH_MAX_RECORDS=10", "READ_BATCH_RECORDS=10"}, "at least 64 for each"},
		{[]string{"REDIS_TELEMETRY_STREAM=t:{0..9}", "WORKERS=2", "POSTGRES_MAX_CONNS=10"}, "WORKERS=10"},
	} {
		_, err := config.Load(with(tt.environ...))
		require.ErrorContains(t, err, tt.want, tt.environ)
	}
	c, err := config.Load(with("REDIS_TELEMETRY_STREAM=a,b"))
	require.NoError(t, err)
	_, err = c.ForStream("")
	require.ErrorContains(t, err, "say which one with --stream")
	_, err = c.ForStream("c")
	require.ErrorContains(t, err, `does not list the stream "c"`)
	one, err := c.ForStream("b")
	require.NoError(t, err)
	require.Equal(t, "b", one.Redis.Stream)
}
