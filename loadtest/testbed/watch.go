package testbed

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// watchEvery is how often a run is polled, and pollTimeout how long one poll
// may take: a frozen process and a stopped server do not answer.
const (
	watchEvery  = 250 * time.Millisecond
	pollTimeout = 400 * time.Millisecond
)

// Sample is a run at one moment. What could not be learned is unknown.
type Sample struct {
	At      time.Duration // since the begin of the run
	Sent    int64
	Behind  time.Duration // of the load behind its own plan
	Slots   []SlotSample
	Rate    float64 // records stored a second, since the last sample
	Backlog *int64
	Age     *float64 // seconds, of the oldest entry that is not done
	P50     *float64 // milliseconds from stream time to commit, since the last sample
	P99     *float64
	Marks   int // faults begun so far
	Fault   string
}

// SlotSample is one slot of the fleet at one moment.
type SlotSample struct {
	Name          string // of the instance, "" while the slot is empty
	Answered      bool
	Stored        int64 // by all instances of the slot so far
	Rate          float64
	Shards        int
	Leader        bool
	DispatchLease bool
	RSS           float64
	CPU           float64
}

// Watch polls a run until its context ends.
type Watch struct {
	Servers *Servers
	Cluster *Cluster
	Began   time.Time
	Show    func(Sample)
	Load    func() (sent int64, behind time.Duration)
	Fault   func() (n int, last string)

	mu      sync.Mutex
	samples []Sample
	latency Histogram
}

// Run samples every watchEvery until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		w.Look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// Look takes one sample.
func (w *Watch) Look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	live := w.Cluster.Live()
	answered := make([]bool, len(live))
	var looks errgroup.Group
	for i, in := range live {
		looks.Go(func() error {
			_, err := in.Scrape(ctx)
			answered[i] = err == nil
			return nil
		})
	}
	var outstanding *int64
	var age *float64
	looks.Go(func() error {
		outstanding, age = w.Servers.Backlog(ctx)
		return nil
	})
	_ = looks.Wait() // each look keeps what it failed to learn as unknown

	s := Sample{At: time.Since(w.Began), Backlog: outstanding, Age: age, Slots: make([]SlotSample, w.Cluster.Size())}
	s.Sent, s.Behind = w.Load()
	s.Marks, s.Fault = w.Fault()
	var latency Histogram
	for _, in := range w.Cluster.All() {
		f := in.LastScrape()
		slot := &s.Slots[in.Slot]
		slot.Stored += f.Stored
		slot.CPU += f.CPU
		latency.Add(f.Latency, 1)
	}
	for i, in := range live {
		f := in.LastScrape()
		slot := &s.Slots[in.Slot]
		slot.Name, slot.Answered = in.Name, answered[i]
		if answered[i] {
			slot.Shards, slot.Leader, slot.DispatchLease, slot.RSS = f.shards, f.Leader, f.DispatchLease, f.RSS
		}
	}
	w.keep(s, latency)
}

// keep derives what follows from the sample before, and adds the sample.
func (w *Watch) keep(s Sample, latency Histogram) {
	w.mu.Lock()
	n := len(w.samples)
	if n > 0 {
		before := w.samples[n-1]
		seconds := (s.At - before.At).Seconds()
		for i := range s.Slots {
			stored := int64(0)
			if i < len(before.Slots) {
				stored = before.Slots[i].Stored
			}
			s.Slots[i].Rate = float64(s.Slots[i].Stored-stored) / seconds
			s.Rate += s.Slots[i].Rate
		}
		since := Histogram{}
		since.Add(latency, 1)
		since.Add(w.latency, -1)
		s.P50, s.P99 = since.Milliseconds(.5), since.Milliseconds(.99)
	}
	w.samples = append(w.samples, s)
	w.latency = latency
	w.mu.Unlock()
	if w.Show != nil && n > 0 { // rates are unknown in the first
		w.Show(s)
	}
}

// Taken returns all samples so far.
func (w *Watch) Taken() []Sample {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.samples[:len(w.samples):len(w.samples)]
}
