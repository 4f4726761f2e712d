package protocol

import (
	"slices"
	"time"
)

// Beat is what a member says of itself at intervals.
type Beat struct {
	Member        string        // identity and incarnation
	Number        uint64        // counts the beats of this incarnation
	Leaving       bool          // it is shutting down and wants its shards taken
	SinkDown      time.Duration // for how long Postgres has not answered it; 0 while it does
	InFlight      int           // entries it has taken in and not finished
	Progress      uint64        // moves whenever something is committed or finished
	CallsReturned uint64        // moves whenever a call of a server comes back to a worker, well or not
}

// FailureDetectorConfig says when a member's shards are moved.
type FailureDetectorConfig struct {
	TTL       time.Duration // silence after which a member is gone
	SinkGrace time.Duration // how long it may be without Postgres while others have it
	Stall     time.Duration // how long it may have work in flight without progress
}

// FailureDetector judges members by their beats, by the watcher's own clock: what counts
// is when a beat was seen to advance. A heartbeat key that is gone or
// frozen proves nothing by itself.
type FailureDetector struct {
	cfg   FailureDetectorConfig
	seen  map[string]*memberState
	fresh time.Time // until then nobody is declared gone
}

type memberState struct {
	beat           Beat
	advanced       time.Time // when its number last moved
	moved          time.Time // when it last made progress, or had nothing to do
	callReturnedAt time.Time // when a call last came back to it, or it had nothing to do
	progressedAt   time.Time // when it last made progress; zero before the first
	present        bool      // it was there at the last look

	out    bool      // it stalled, and others may do better
	frozen bool      // and no call had come back to it
	outAt  time.Time // when it was last found so
}

// note takes in what a member says, after an earlier beat.
func (s *memberState) note(now time.Time, b Beat) {
	if b.Number != s.beat.Number {
		s.advanced = now
	}
	if b.Progress != s.beat.Progress {
		s.moved, s.callReturnedAt, s.progressedAt, s.out = now, now, now, false
	}
	if b.CallsReturned != s.beat.CallsReturned {
		s.callReturnedAt = now
		s.out = s.out && !s.frozen
	}
	if b.InFlight == 0 {
		s.moved = now
		if !s.out {
			s.callReturnedAt = now
		}
	}
	s.beat = b
}

// NewFailureDetector returns a watch that has seen nobody.
func NewFailureDetector(cfg FailureDetectorConfig) *FailureDetector {
	return &FailureDetector{cfg: cfg, seen: make(map[string]*memberState)}
}

// Observe takes in the beats found at one look.
func (w *FailureDetector) Observe(now time.Time, beats []Beat) {
	for _, s := range w.seen {
		s.present = false
	}
	for _, b := range beats {
		s := w.seen[b.Member]
		if s == nil {
			s = &memberState{beat: b, advanced: now, moved: now, callReturnedAt: now}
			w.seen[b.Member] = s
		}
		s.note(now, b)
		s.present = true
	}
	for m := range w.seen {
		if w.Gone(now, m) && !w.seen[m].present {
			delete(w.seen, m)
		}
	}
	w.evaluate(now)
}

// evaluate finds the members whose shards others should have, since they have work
// in flight and make no progress. One to which no call of a server comes back is
// stuck itself. The calls of any other come back as errors; who could do better
// is known only while somebody makes progress, and well after it did: what stops
// everybody does not find all of them at the same moment. When nobody does, shards
// stay where they are: whatever is in the way would be in the way elsewhere.
//
// Without shards it has no work, which is no sign of health. So it stays out:
// until a call comes back, if it was stuck, else for as long again.
func (w *FailureDetector) evaluate(now time.Time) {
	var lastProgress time.Time // the last progress of anybody who is there, if it was lately
	for m, s := range w.seen {
		if now.Sub(s.progressedAt) < w.cfg.Stall && s.progressedAt.After(lastProgress) && !w.Gone(now, m) {
			lastProgress = s.progressedAt
		}
	}
	for _, s := range w.seen {
		better := lastProgress.Sub(s.moved) >= w.cfg.Stall/2
		switch frozen := now.Sub(s.callReturnedAt) >= w.cfg.Stall; {
		case w.stalls(now, s) && (frozen || better):
			s.out, s.frozen, s.outAt = true, frozen, now
		case !s.frozen && now.Sub(s.outAt) >= w.cfg.Stall:
			s.out = false
		}
	}
}

func (w *FailureDetector) stalls(now time.Time, s *memberState) bool {
	return s.beat.InFlight > 0 && s.beat.SinkDown == 0 && now.Sub(s.moved) >= w.cfg.Stall
}

// RedisUnavailable notes that Redis did not answer. For one TTL after it comes back nobody
// is declared gone: members could not beat either.
func (w *FailureDetector) RedisUnavailable(now time.Time) {
	w.fresh = now.Add(w.cfg.TTL)
	for _, s := range w.seen {
		s.advanced, s.moved, s.callReturnedAt = now, now, now
	}
}

// Gone reports whether a member is not there any more: it was never seen, it said
// that it leaves and is not found any more, or it has been silent for a TTL.
func (w *FailureDetector) Gone(now time.Time, member string) bool {
	s := w.seen[member]
	if s == nil {
		return !now.Before(w.fresh)
	}
	if s.beat.Leaving && !s.present {
		return true
	}
	return now.Sub(s.advanced) >= w.cfg.TTL && !now.Before(w.fresh)
}

// Leaving reports whether a member that is there said that it is shutting down.
func (w *FailureDetector) Leaving(member string) bool {
	s := w.seen[member]
	return s != nil && s.beat.Leaving
}

// Eligible is who may own shards, sorted: those that are there, are not
// leaving, did not stall where others do better, and reach Postgres if anybody does.
func (w *FailureDetector) Eligible(now time.Time) []string {
	var there, able []string
	sinkUp := false
	for m, s := range w.seen {
		if w.Gone(now, m) || s.beat.Leaving {
			continue
		}
		there = append(there, m)
		sinkUp = sinkUp || s.beat.SinkDown == 0
	}
	for _, m := range there {
		s := w.seen[m]
		cutOff := sinkUp && s.beat.SinkDown >= w.cfg.SinkGrace
		if !cutOff && !s.out {
			able = append(able, m)
		}
	}
	if len(able) == 0 {
		able = there // somebody has to try
	}
	slices.Sort(able)
	return able
}

// Stalled lists the members that have work in flight and make no progress, and
// those that lost their shards for it.
func (w *FailureDetector) Stalled(now time.Time) []string {
	var stalled []string
	for m, s := range w.seen {
		if !w.Gone(now, m) && (s.out || w.stalls(now, s)) {
			stalled = append(stalled, m)
		}
	}
	slices.Sort(stalled)
	return stalled
}
