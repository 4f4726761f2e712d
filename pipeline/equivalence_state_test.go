package pipeline

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
)

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
