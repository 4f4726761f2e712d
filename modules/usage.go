package modules

import (
	"bytes"
	"os"
	"runtime/metrics"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/trmtracking/processor/coordination"
)

// usage measures what this process consumes, for its heartbeat.
type usage struct {
	mu       sync.Mutex
	at       time.Time
	cpu      time.Duration
	finished uint64
	last     coordination.Usage
}

// usageEvery is the shortest span of a rate: heartbeats may follow each other
// closely.
const usageEvery = 900 * time.Millisecond

// sample returns rates since the sample before, and the memory of now.
func (u *usage) sample(finished uint64, dispatches bool) coordination.Usage {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	span := now.Sub(u.at)
	if span >= usageEvery {
		cpu := cpuTime()
		if !u.at.IsZero() {
			u.last.CPU = (cpu - u.cpu).Seconds() / span.Seconds()
			u.last.Rate = float64(finished-u.finished) / span.Seconds()
		}
		u.at, u.cpu, u.finished = now, cpu, finished
		u.last.Memory = residentBytes()
	}
	u.last.Dispatches = dispatches
	return u.last
}

func cpuTime() time.Duration {
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// residentBytes returns the memory of the process: what the system holds for it
// or, where that cannot be read, what the runtime has asked for.
func residentBytes() uint64 {
	if text, err := os.ReadFile("/proc/self/statm"); err == nil {
		if fields := bytes.Fields(text); len(fields) > 1 {
			if pages, err := strconv.ParseUint(string(fields[1]), 10, 64); err == nil {
				return pages * uint64(os.Getpagesize())
			}
		}
	}
	sample := []metrics.Sample{{Name: "/memory/classes/total:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return sample[0].Value.Uint64()
}
