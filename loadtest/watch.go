package loadtest

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trmtracking/processor/internal/stream"
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

// watch polls a run until its context ends.
type watch struct {
	ground *testbed
	line   *cluster
	began  time.Time
	show   func(Sample)
	load   func() (sent int64, behind time.Duration)
	fault  func() (n int, last string)

	mu      sync.Mutex
	samples []Sample
	latency histogram
}

func (w *watch) run(ctx context.Context) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		w.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// look takes one sample.
func (w *watch) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	live := w.line.live()
	answered := make([]bool, len(live))
	var looks errgroup.Group
	for i, in := range live {
		looks.Go(func() error {
			_, err := in.scrape(ctx)
			answered[i] = err == nil
			return nil
		})
	}
	var outstanding *int64
	var age *float64
	looks.Go(func() error {
		outstanding, age = w.backlog(ctx)
		return nil
	})
	_ = looks.Wait() // each look keeps what it failed to learn as unknown

	s := Sample{At: time.Since(w.began), Backlog: outstanding, Age: age, Slots: make([]SlotSample, w.line.size())}
	s.Sent, s.Behind = w.load()
	s.Marks, s.Fault = w.fault()
	var latency histogram
	for _, in := range w.line.all() {
		f := in.lastScrape()
		slot := &s.Slots[in.slot]
		slot.Stored += f.stored
		slot.CPU += f.cpu
		latency.add(f.latency, 1)
	}
	for i, in := range live {
		f := in.lastScrape()
		slot := &s.Slots[in.slot]
		slot.Name, slot.Answered = in.name, answered[i]
		if answered[i] {
			slot.Shards, slot.Leader, slot.DispatchLease, slot.RSS = f.shards, f.leader, f.turn, f.rss
		}
	}
	w.keep(s, latency)
}

// keep derives what follows from the sample before, and adds the sample.
func (w *watch) keep(s Sample, latency histogram) {
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
		since := histogram{}
		since.add(latency, 1)
		since.add(w.latency, -1)
		s.P50, s.P99 = since.milliseconds(.5), since.milliseconds(.99)
	}
	w.samples = append(w.samples, s)
	w.latency = latency
	w.mu.Unlock()
	if w.show != nil && n > 0 { // rates are unknown in the first
		w.show(s)
	}
}

// backlog returns what is not done and how old the oldest of it is.
func (w *watch) backlog(ctx context.Context) (outstanding *int64, age *float64) {
	b, err := w.ground.inspector.Backlog(ctx)
	if err != nil {
		return nil, nil
	}
	if b.LagKnown {
		n := b.Lag + b.Pending
		outstanding = &n
	}
	if b.OldestKnown {
		seconds := 0.0
		if !b.Oldest.IsZero() {
			seconds = max(0, time.Since(b.Oldest.Time()).Seconds())
		}
		age = &seconds
	}
	return outstanding, age
}

// backlogOf returns how many entries are not done, false where that is not known.
func backlogOf(info stream.Info) (int64, bool) {
	switch {
	case !info.Exists:
		return 0, true
	case !info.GroupExists:
		return info.Length, true
	}
	return info.Lag.N + info.Pending, info.Lag.Known
}

// milliseconds returns a quantile as it is shown, nil where there is none.
func (h histogram) milliseconds(q float64) *float64 {
	d, ok := h.quantile(q)
	if !ok {
		return nil
	}
	ms := float64(d.Microseconds()) / 1000
	return &ms
}

// taken returns all samples so far and the latency of all records.
func (w *watch) taken() ([]Sample, histogram) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.samples[:len(w.samples):len(w.samples)], w.latency
}

// peak returns the highest age of the oldest unfinished entry in a span of the run.
func peak(samples []Sample, from, to time.Duration) float64 {
	highest := 0.0
	for _, s := range samples {
		if s.At >= from && s.At <= to && s.Age != nil {
			highest = max(highest, *s.Age)
		}
	}
	return highest
}
