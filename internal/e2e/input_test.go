package e2e_test

import (
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
	"github.com/trmtracking/processor/loadtest/observer"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// spoiled is a valid entry with something in its payload replaced.
func spoiled(device, old, with string) []string {
	fields := servicetest.Record(device, 0)
	payload := &fields[len(fields)-1]
	*payload = strings.Replace(*payload, old, with, 1)
	return fields
}

// badInput is everything that is known to come out of a stream besides records.
func badInput(device string) map[string][]string {
	raw := func(payload string) []string {
		return []string{"ts", "2026-01-01T00:00:00.000Z", "device_id", device, "codec", "8", "payload", payload}
	}
	whole := servicetest.Record(device, 0)
	payload := whole[len(whole)-1]
	var many strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&many, `"a%d":%d,`, i, i)
	}
	return map[string][]string{
		"not JSON":              raw("$GPRMC,081836,A*62"),
		"truncated JSON":        raw(payload[:len(payload)/2]),
		"empty payload":         raw(""),
		"another type":          raw(`[1,2,3]`),
		"latitude is a text":    spoiled(device, `"latitude":`, `"latitude":"north","x":`),
		"latitude is missing":   spoiled(device, `"latitude":`, `"x":`),
		"latitude is too large": spoiled(device, `"latitude":`, `"latitude":90.0000001,"x":`),
		"longitude is NaN":      spoiled(device, `"longitude":`, `"longitude":NaN,"x":`),
		"longitude is NaN text": spoiled(device, `"longitude":`, `"longitude":"NaN","x":`),
		"speed is infinite":     spoiled(device, `"speed":`, `"speed":Infinity,"x":`),
		"speed beyond a real":   spoiled(device, `"speed":`, `"speed":1e39,"x":`),
		"altitude beyond all":   spoiled(device, `"altitude":`, `"altitude":1e400,"x":`),
		"satellites beyond 16":  spoiled(device, `"satellites":`, `"satellites":9223372036854775807,"x":`),
		"satellites below 16":   spoiled(device, `"satellites":`, `"satellites":-9223372036854775808,"x":`),
		"priority 3":            spoiled(device, `"priority":`, `"priority":3,"x":`),
		"year 1901":             spoiled(device, `"timestamp":"`, `"timestamp":"1901-12-13T20:45:52.207Z","x":"`),
		"lone surrogate":        spoiled(device, `"attributes":{`, `"attributes":{"note":"\ud800",`),
		"invalid UTF-8":         spoiled(device, `"attributes":{`, "\"attributes\":{\"note\":\"\xff\xfe\","),
		"NUL in a value":        spoiled(device, `"attributes":{`, `"attributes":{"note":"a\u0000b",`),
		"NUL in a key":          spoiled(device, `"attributes":{`, `"attributes":{"a\u0000b":1,`),
		"unknown sentinel":      spoiled(device, `"attributes":{`, `"attributes":{"1":{"__decimal":"1"},`),
		"10 MB payload":         spoiled(device, `"attributes":{`, `"attributes":{"note":"`+strings.Repeat("x", 10<<20)+`",`),
		"100,000 attributes":    spoiled(device, `"attributes":{`, `"attributes":{`+many.String()),
		"deep nesting":          spoiled(device, `"attributes":{`, `"attributes":{"n":`+strings.Repeat("[", 10_000)+strings.Repeat("]", 10_000)+`,`),
		"empty device":          {"ts", "x", "device_id", "", "codec", "8", "payload", payload},
		"another device inside": spoiled(device, `"device_id":"`, `"device_id":"9`),
		"no payload field":      {"ts", "x", "device_id", device, "codec", "8"},
		"no known field":        {"what", "ever"},
		"device of 65 letters":  spoiled(strings.Repeat("d", 65), "x", "x"),
	}
}

func TestBadInputIsNamedAndBlocksNothing(t *testing.T) {
	dep := servicetest.New(t)
	p := dep.Run("WORKERS=2", "SHARDS=4", "DLQ_MAX_ATTEMPTS=1")
	p.AwaitReady()
	const device = "device-of-both"
	names := map[telemetry.EntryID]string{}
	second := int64(0)
	for name, fields := range badInput(device) {
		second++
		// Before and behind each bad entry a good one of the same device.
		ids := dep.Publish(servicetest.Record(device, 2*second), fields, servicetest.Record(device, 2*second+1))
		names[ids[1]] = name
	}
	bad := len(names)
	dep.AwaitStored(2*bad, 30*time.Second)
	testenv.Wait(t, 10*time.Second, func() error {
		n, err := p.Metric(`processor_pipeline_records_total{outcome="dead_lettered"}`)
		if err != nil || int(n) != bad {
			return fmt.Errorf("want %d dead-lettered, have %v, %w", bad, n, err)
		}
		return nil
	})
	where := stream.Config{URL: dep.RedisURL, Stream: dep.Stream, Group: dep.Group, Timeout: 10 * time.Second}
	client, err := stream.Connect(where)
	require.NoError(t, err)
	defer client.Close()
	letters, err := stream.NewDeadLetters(client, where, dep.Stream+":dlq")
	require.NoError(t, err)
	for l, err := range letters.All(t.Context()) {
		require.NoError(t, err)
		require.NotEmpty(t, l.Error, names[l.Entry.ID])
		require.Less(t, len(l.Error), 1000, names[l.Entry.ID])
		require.Contains(t, names, l.Entry.ID)
		delete(names, l.Entry.ID)
	}
	require.Empty(t, names, "each is a dead letter, once")
	require.Less(t, len(p.Output()), 1<<20, "the log does not carry the payloads")
	failed, err := p.Metric(`processor_pipeline_errors_total{step="commit"}`)
	require.NoError(t, err)
	require.Zero(t, failed, "none reached Postgres as a failure of a batch")
	require.Zero(t, p.Terminate())

	again := dep.Run("SHARDS=4")
	dep.Publish(servicetest.Record(device, 1_000_000))
	dep.AwaitStored(2*bad+1, 20*time.Second)
	require.Zero(t, again.Terminate())
}

func TestWhatNodePublishesIsStoredAsItWasMeant(t *testing.T) {
	testenv.Slow(t)
	testenv.SkipIn(t, devenv.Encrypted, "the test cannot read what is sent")
	dep := servicetest.New(t)
	p := dep.Run()
	p.AwaitReady()
	u, err := url.Parse(dep.RedisURL)
	require.NoError(t, err)
	host, port, err := net.SplitHostPort(u.Host)
	require.NoError(t, err)
	const count = 5000
	published := testenv.PublishWithNode(t, host, port, dep.Stream, fmt.Sprint(count), "20260103")
	dep.AwaitStored(count, 30*time.Second)

	type key struct {
		device string
		us     int64
	}
	meant := map[key]testenv.Published{}
	for _, m := range published {
		meant[key{m.DeviceID, m.Timestamp.UnixMicro()}] = m
	}
	require.Len(t, meant, count)
	pool, err := store.Open(t.Context(), store.Config{
		URL: dep.PostgresURL, Member: "test", MaxConns: 2,
		ConnectTimeout: 5 * time.Second, StatementTimeout: 10 * time.Second, LockTimeout: 5 * time.Second,
	})
	require.NoError(t, err)
	defer pool.Close()
	for row, err := range observer.Positions(t.Context(), pool) {
		require.NoError(t, err)
		m, ok := meant[key{row.Device, row.TimeUS}]
		require.True(t, ok, "%+v", row)
		id, err := telemetry.ParseEntryID(m.ID)
		require.NoError(t, err)
		want := m.Record()
		require.JSONEq(t, string(want.Attributes), string(row.Attributes))
		row.Attributes = nil
		require.Equal(t, oracle.Row{
			Device: want.DeviceID, Codec: want.Codec, TimeUS: want.TimeUS, IngestedUS: id.Time().UnixMicro(),
			Latitude: want.Latitude, Longitude: want.Longitude, Altitude: want.Altitude, Angle: want.Angle, Speed: want.Speed,
			Satellites: want.Satellites, Priority: want.Priority,
		}, row)
		delete(meant, key{m.DeviceID, m.Timestamp.UnixMicro()})
	}
	require.Empty(t, meant)
	require.Zero(t, p.Terminate())
}
