package pipeline

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

var snapshotHere = snapshotOf{
	shard: 1, shards: 3, epoch: 7, fences: 4,
	rules: telemetry.Eligibility{MaxFutureSkew: time.Minute, MaxPast: time.Hour, MinSatellites: 3, MaxSpeed: 300},
}

// A new owner learns from a snapshot what the last one knew, unless it belongs
// elsewhere or a bit of it is wrong: then it learns nothing.
func TestASnapshotIsTheStateOrNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		last, want := newState(100, 3, func() {}), make(map[string]device)
		for n := range rapid.IntRange(1, 40).Draw(t, "devices") {
			size := rapid.OneOf(rapid.IntRange(2, 40), rapid.SampledFrom([]int{254, 255, 256})).Draw(t, "size")
			id := fmt.Sprintf("%02d", n) + strings.Repeat("x", size-2)
			shard := rapid.IntRange(0, 2).Draw(t, "shard")
			d := last.learn(id, shard, geofence.Fix{
				TimeUS: rapid.SampledFrom([]int64{never, -1, 0, 1_700_000_000_000_000}).Draw(t, "time"), Latitude: 48.5, Longitude: -180, Speed: uint8(n),
			})
			d.settled = rapid.Bool().Draw(t, "settled")
			d.size |= rapid.SampledFrom([]uint8{0, unheard}).Draw(t, "unheard")
			open := rapid.Bool().Draw(t, "open")
			if open {
				last.open[d] = geofence.Open{UntilUS: 5}
			}
			until := rapid.SampledFrom([]int64{never, -1, 0, 5}).Draw(t, "a crossing is recorded at")
			if until != never {
				last.bereft[d] = until
			}
			if shard == snapshotHere.shard && d.watermark != never && d.watermark >= until && size <= 255 {
				want[id] = device{watermark: d.watermark, lat: d.lat, lon: d.lon, speed: d.speed, size: d.size & unheard, settled: d.settled && !open}
			}
		}
		left := last.snapshot(snapshotHere)
		require.LessOrEqual(t, len(left), snapshotMaxBytes)

		next := newState(100, 3, func() {})
		require.NoError(t, next.restore(left, snapshotHere))
		require.Equal(t, len(want), next.len)
		for id, w := range want {
			d := next.find(id, snapshotHere.shard)
			require.NotNil(t, d, id)
			learned := device{watermark: d.watermark, lat: d.lat, lon: d.lon, speed: d.speed, size: d.size & unheard, settled: d.settled}
			require.Equal(t, w, learned)
		}

		other := snapshotHere
		switch rapid.IntRange(0, 8).Draw(t, "belongs elsewhere") {
		case 0:
			other.epoch += rapid.SampledFrom([]int64{-1, 1, 2}).Draw(t, "epoch")
		case 1:
			other.shard++
		case 2:
			other.shards++
		case 3:
			other.fences++
		case 4:
			other.rules.MinSatellites++
		case 5:
			other.rules.MaxSpeed = 0
		case 6:
			left = left[:rapid.IntRange(0, len(left)-1).Draw(t, "cut at")]
		case 7:
			left = append(left, 0)
		default:
			left = slices.Clone(left)
			left[rapid.IntRange(0, len(left)-1).Draw(t, "byte")] ^= byte(1 << rapid.IntRange(0, 7).Draw(t, "bit"))
		}
		next = newState(100, 3, func() {})
		require.Error(t, next.restore(left, other))
		require.Zero(t, next.len, "something was learned from it")
	})
}

// Whatever bytes pass for a snapshot, its devices are learned or it is refused.
func TestNoSnapshotPanics(t *testing.T) {
	header := append([]byte{snapshotVersion, 0, 0, 0, 0}, snapshotHere.append(nil)...)
	rapid.Check(t, func(t *rapid.T) {
		b := slices.Clone(header)
		for range rapid.IntRange(0, 3).Draw(t, "devices") {
			size := rapid.SampledFrom([]int{0, 1, 15, 16, 254, 255}).Draw(t, "size")
			b = append(append(b, byte(size)), rapid.SliceOfN(rapid.Byte(), size+deviceBytes-1, size+deviceBytes-1).Draw(t, "device")...)
		}
		b = append(b, rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "rest")...)
		binary.BigEndian.PutUint32(b[1:], crc32.Checksum(b[snapshotHeader:], castagnoli))

		s := newState(2, 3, func() {})
		if err := s.restore(b, snapshotHere); err != nil {
			require.Zero(t, s.len, "something was learned from it")
		}
		require.LessOrEqual(t, s.len, s.max)
		for slot := range int32(len(s.blocks) * blockSize) {
			if d := s.at(slot); d.size != 0 {
				require.Same(t, d, s.find(s.id(slot, d), snapshotHere.shard))
				s.drop(slot)
			}
		}
		require.Zero(t, s.len)
	})
}

// P9: more devices than there is room for are not learned, and a snapshot has a limit.
func TestP9ASnapshotIsBounded(t *testing.T) {
	const devices = 30_000
	of := snapshotHere
	last := newState(devices, 3, func() {})
	for n := range devices {
		last.learn("35630704"+strconv.Itoa(1_000_000+n), of.shard, geofence.Fix{TimeUS: 1})
	}
	left := last.snapshot(of)
	require.LessOrEqual(t, len(left), snapshotMaxBytes)
	require.Greater(t, len(left), snapshotMaxBytes-100)

	next := newState(1000, 3, func() {})
	require.NoError(t, next.restore(left, of))
	require.Equal(t, 1000, next.len)
}

// A shard that nobody released, as after a kill, and one that begins anew here have no
// state that could be missing.
func TestAStateIsMissingOnlyAfterARelease(t *testing.T) {
	w := &worker{state: newState(10, 3, func() {})}
	w.metrics = newMetrics(prometheus.NewRegistry(), &table{})
	missing := func() float64 {
		var m dto.Metric
		require.NoError(t, w.metrics.snapshots.WithLabelValues(snapshotMissing).Write(&m))
		return m.GetCounter().GetValue()
	}
	w.inherit(&message{kind: granted, shard: 1})
	require.Zero(t, missing())
	w.inherit(&message{kind: granted, shard: 1, released: true})
	require.Equal(t, 1.0, missing())
}

// A batch that is not committed may come to nothing, and the state is ahead of the tables.
func TestOnlyWhatIsCommittedIsLeft(t *testing.T) {
	w := &worker{state: newState(10, 3, func() {}), owned: map[int]ownedShard{1: {grant: 5, epoch: 7}}, current: &batch{}, committing: &batch{}}
	w.cfg.Shards = 3
	w.fences = &fences{}
	w.fences.present.Store(&protocol.Fences{})
	w.metrics = newMetrics(prometheus.NewRegistry(), &table{})
	w.state.learn("a", 1, geofence.Fix{TimeUS: 1})
	require.NotNil(t, w.leave(1, 5))
	require.Nil(t, w.leave(1, 4), "under another grant")
	require.Nil(t, w.leave(0, 0), "of a shard that is not owned")

	w.current.parts = []part{{shard: 1}}
	require.Nil(t, w.leave(1, 5), "a batch holds records of it")
	w.current.parts, w.committing.parts, w.busy = nil, []part{{shard: 1}}, true
	require.Nil(t, w.leave(1, 5), "a batch of it commits")
	w.busy = false
	require.NotNil(t, w.leave(1, 5))
}
