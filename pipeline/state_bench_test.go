package pipeline

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// BenchmarkState is what a record of a known device costs in the state, its
// devices in random order, and what they cost each time garbage is collected.
func BenchmarkState(b *testing.B) {
	for _, devices := range []int{1000, 1_000_000} {
		s := newState(devices, 64, func() {})
		id := func(i int) string { return strconv.Itoa(356307040000000 + i) }
		for i := range devices {
			s.learn(id(i), i%64, geofence.Fix{Latitude: 48, Longitude: 11})
		}
		random := rand.New(rand.NewPCG(9, 9))
		var seq uint64
		order := make([]int32, 1<<20)
		for i := range order {
			order[i] = int32(random.IntN(devices))
		}
		b.Run(fmt.Sprint("record/", devices), func(b *testing.B) {
			set, faults := geofence.NewSet(nil)
			require.Empty(b, faults)
			bt, i := &batch{rules: protocol.Rules{Fences: &protocol.Fences{Set: set}}}, 0
			for b.Loop() {
				if i%2000 == 0 {
					seq++
					bt.reset(seq, false)
				}
				n := int(order[i%len(order)])
				r := telemetry.Record{DeviceID: id(n), TimeUS: int64(seq*2000) + int64(i%2000), Latitude: 48, Longitude: 11}
				bt.place(s.find(r.DeviceID, n%64), &r, true)
				i++
			}
		})
		b.Run(fmt.Sprint("collect/", devices), func(b *testing.B) {
			for b.Loop() {
				runtime.GC()
			}
		})
		runtime.KeepAlive(s)
	}
}
