package stream_test

import (
	"fmt"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

var evalTime = regexp.MustCompile(`cmdstat_evalsha:calls=\d+,usec=(\d+)`)

// BenchmarkDispatchAck is what the two scripts of the hot path cost the server.
func BenchmarkDispatchAck(b *testing.B) {
	const n, parts = 1000, 64
	corner := testenv.Redis(b)
	g := benchOn(b, corner.Client(), stream.Config{
		URL: corner.URL, Stream: corner.Stream, Group: corner.Group, Shards: parts, Timeout: 5 * time.Second,
	})
	g.turn("t")
	var all []int
	for shard := range parts {
		all = append(all, shard)
	}
	_, err := g.RegisterOwner(b.Context(), "owner", all)
	require.NoError(b, err)
	var devices []string
	for i := range n {
		devices = append(devices, fmt.Sprint("device-", i))
	}
	spent := func() int64 {
		text, err := g.client.Info(b.Context(), "commandstats").Result()
		require.NoError(b, err)
		m := evalTime.FindStringSubmatch(text)
		require.NotNil(b, m)
		usec, err := strconv.ParseInt(m[1], 10, 64)
		require.NoError(b, err)
		return usec
	}
	var dispatch, ack, entries int64
	for b.Loop() {
		g.add(devices...)
		after := g.info().Delivered
		a := g.read(after)
		begun := spent()
		_, err := g.Dispatch(b.Context(), protocol.DispatchRequest{Token: "t", TTL: time.Minute, After: after}, &a)
		require.NoError(b, err)
		dispatched := spent()
		acks := make([]protocol.Ack, 0, parts)
		for i, shard := range a.Shards {
			ids := make([]telemetry.EntryID, 0, n)
			for _, e := range a.Entries[a.Starts[i]:a.Starts[i+1]] {
				ids = append(ids, e.ID)
			}
			acks = append(acks, protocol.Ack{Shard: shard, Token: "owner", IDs: ids})
		}
		require.NoError(b, g.Ack(b.Context(), acks))
		dispatch, ack, entries = dispatch+dispatched-begun, ack+spent()-dispatched, entries+n
		if entries%50_000 == 0 {
			require.NoError(b, g.client.XTrimMaxLen(b.Context(), corner.Stream, 0).Err())
		}
	}
	b.ReportMetric(float64(dispatch)/float64(entries), "us-dispatch/entry")
	b.ReportMetric(float64(ack)/float64(entries), "us-ack/entry")
}
