package pipeline

import (
	"fmt"
	"hash/maphash"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// TestTheStateIsAMapThatForgets compares the state with a map, with hashes that
// collide, IDs of all lengths, shards that are void and a small bound.
func TestTheStateIsAMapThatForgets(t *testing.T) {
	const shards, bound = 3, 20
	type known struct{ generation, batch, watermark int }
	rapid.Check(t, func(t *rapid.T) {
		forgotten := 0
		s := newState(bound, shards, func() { forgotten++ })
		seed := maphash.MakeSeed()
		s.hash = func(id string) uint64 { return maphash.String(seed, id) % 7 }
		model := make(map[string]known)
		var generations [shards]int
		batch, learnt := 0, 0
		shardOf := func(n int) int { return n % shards }
		name := func(n int) string { return strconv.Itoa(n) + strings.Repeat("x", n%40) }
		device := rapid.IntRange(0, 60)
		t.Repeat(map[string]func(*rapid.T){
			"record": func(t *rapid.T) {
				n := device.Draw(t, "device")
				id := name(n)
				d := s.find(id, shardOf(n))
				m, ok := model[id]
				if ok && m.batch == batch || d != nil {
					// Neither void nor forgotten while its batch is not committed.
					if ok = m.generation == generations[shardOf(n)]; ok {
						require.NotNil(t, d)
						require.EqualValues(t, m.watermark, d.watermark)
					} else {
						require.Nil(t, d)
					}
				}
				if d == nil {
					learnt++
					d = s.learn(id, shardOf(n), geofence.Fix{TimeUS: int64(learnt)})
					require.Zero(t, d.batch)
				}
				require.Same(t, d, s.find(id, shardOf(n)))
				d.batch = uint64(batch)
				d.watermark++
				model[id] = known{generations[shardOf(n)], batch, int(d.watermark)}
			},
			"next batch": func(*rapid.T) { batch++ },
			"commit":     func(*rapid.T) { s.evict(uint64(max(0, batch-1))) },
			"commit all": func(t *rapid.T) {
				s.evict(uint64(batch))
				require.LessOrEqual(t, s.len, bound)
				batch++
			},
			"void": func(t *rapid.T) {
				shard := rapid.IntRange(0, shards-1).Draw(t, "shard")
				s.invalidate(shard)
				generations[shard]++
				require.Zero(t, s.known(shard))
			},
			"": func(t *rapid.T) {
				held := 0
				for n := range 61 {
					if s.get(name(n)) != nil {
						held++
					}
				}
				require.Equal(t, s.len, held)
				require.LessOrEqual(t, len(s.long), held)
				require.Equal(t, len(s.blocks)*blockSize, held+len(s.free))
			},
		})
	})
}

// TestDevicesInUseAreNotForgotten: a device that sends in each batch stays known
// while a crowd of others passes by.
func TestDevicesInUseAreNotForgotten(t *testing.T) {
	s := newState(100, 1, func() {})
	s.learn("busy", 0, geofence.Fix{})
	for i := range 10_000 {
		s.learn(strconv.Itoa(i), 0, geofence.Fix{})
		require.NotNil(t, s.find("busy", 0), "after %d others", i)
		s.evict(0)
	}
	require.Equal(t, 100, s.len)
}

// P9: the bound is kept also where a batch comes back from its acknowledgement,
// and is emptied, before the outcome of its commit is looked at.
func TestP9DevicesAreForgottenThoughTheirBatchIsAcknowledgedFirst(t *testing.T) {
	w := &worker{state: newState(1, 1, func() {})}
	b := &batch{seq: 1}
	for _, id := range []string{"a", "b", "c"} {
		w.state.learn(id, 0, geofence.Fix{}).batch = b.seq
	}
	c := w.commit(t.Context(), b)
	w.put(b)
	require.NoError(t, w.handleResult(t.Context(), c))
	require.Equal(t, 1, w.state.len)
}

// P9: what is kept for reuse pins no entry, nor the reply that it came in.
func TestP9ABatchThatIsDoneHoldsNothing(t *testing.T) {
	w := &worker{}
	b := &batch{}
	b.reset(1, true)
	b.rules.Fences = &protocol.Fences{}
	d := &device{watermark: never}
	for i := range 3 {
		r := telemetry.Record{DeviceID: "a", TimeUS: int64(i), Attributes: []byte("{}")}
		b.place(d, &r, true)
		b.fresh = append(b.fresh, r)
		e := telemetry.Entry{ID: telemetry.EntryID{Ms: 1}, Fields: []string{"device_id", "a"}}
		b.parts = append(b.parts, part{shard: 1, entries: []telemetry.Entry{e}})
		b.crossings = append(b.crossings, protocol.Crossing{DeviceID: "a"})
		b.deferred = append(b.deferred, protocol.Deferred{DeadLetter: telemetry.DeadLetter{Entry: e}})
		b.giveUp(telemetry.DeadLetter{Entry: e}, true)
		b.giveUp(telemetry.DeadLetter{Entry: e}, false)
	}
	w.put(b)
	require.Len(t, w.spare, 1)
	for name, kept := range map[string]any{
		"parts": b.parts[:3], "fresh": b.fresh[:3], "late": b.late[:3], "crossings": b.crossings[:3], "touched": b.deltas[:1],
		"deferred": b.deferred[:3], "letters": b.letters[:3], "letters of deferred": b.deferredDeadLetters[:3],
	} {
		list := reflect.ValueOf(kept)
		for i := range list.Len() {
			require.True(t, list.Index(i).IsZero(), "%s: %+v", name, kept)
		}
	}
	require.Empty(t, b.deadLettered)
}

// TestTheStateOfADeviceIsSmall measures what 200,000 devices, the default bound
// of an instance, take in memory.
func TestTheStateOfADeviceIsSmall(t *testing.T) {
	const devices = 200_000
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	s := newState(devices, 64, func() {})
	for i := range devices {
		s.learn(fmt.Sprintf("35630704%07d", i), i%64, geofence.Fix{TimeUS: int64(i), Latitude: 48, Longitude: 11})
	}
	each := float64(heap()-before) / devices
	runtime.KeepAlive(s)
	t.Logf("%.0f bytes a device", each)
	require.Less(t, each, 500.0)
}
