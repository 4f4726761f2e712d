package protocol

import (
	"slices"
	"time"
)

// Beat is what a member says of itself at intervals.
type Beat struct {
	Member   string        // identity and incarnation
	Number   uint64        // counts the beats of this incarnation
	Leaving  bool          // it is shutting down and wants its shards taken
	SinkDown time.Duration // for how long Postgres has not answered it; 0 while it does
	InHand   int           // entries it has taken in and not finished
	Progress uint64        // moves whenever something is finished
}

// WatchConfig says when a member's shards are moved.
type WatchConfig struct {
	TTL       time.Duration // silence after which a member is gone
	SinkGrace time.Duration // how long it may be without Postgres while others have it
	Stall     time.Duration // how long it may have work in hand without progress
}

// Watch judges members by their beats, by the watcher's own clock: what counts
// is when a beat was seen to advance. A heartbeat key that is gone or
// frozen proves nothing by itself.
type Watch struct {
	cfg   WatchConfig
	seen  map[string]*sighting
	fresh time.Time // until then nobody is declared gone
}

type sighting struct {
	beat     Beat
	advanced time.Time // when its number last moved
	moved    time.Time // when it last made progress, or had nothing to do
	present  bool      // it was there at the last look
}

// NewWatch returns a watch that has seen nobody.
func NewWatch(cfg WatchConfig) *Watch {
	return &Watch{cfg: cfg, seen: make(map[string]*sighting)}
}

// See takes in the beats found at one look.
func (w *Watch) See(now time.Time, beats []Beat) {
	for _, s := range w.seen {
		s.present = false
	}
	for _, b := range beats {
		s := w.seen[b.Member]
		if s == nil {
			s = &sighting{advanced: now, moved: now}
			w.seen[b.Member] = s
		} else {
			if b.Number != s.beat.Number {
				s.advanced = now
			}
			if b.Progress != s.beat.Progress || b.InHand == 0 {
				s.moved = now
			}
		}
		s.beat, s.present = b, true
	}
	for m := range w.seen {
		if w.Gone(now, m) && !w.seen[m].present {
			delete(w.seen, m)
		}
	}
}

// Away notes that Redis did not answer. For one TTL after it comes back nobody
// is declared gone: members could not beat either.
func (w *Watch) Away(now time.Time) {
	w.fresh = now.Add(w.cfg.TTL)
	for _, s := range w.seen {
		s.advanced, s.moved = now, now
	}
}

// Gone tells whether a member is not there any more: it was never seen, it said
// that it leaves and is not found any more, or it has been silent for a TTL.
func (w *Watch) Gone(now time.Time, member string) bool {
	s := w.seen[member]
	if s == nil {
		return !now.Before(w.fresh)
	}
	if s.beat.Leaving && !s.present {
		return true
	}
	return now.Sub(s.advanced) >= w.cfg.TTL && !now.Before(w.fresh)
}

// Leaving tells whether a member that is there said that it is shutting down.
func (w *Watch) Leaving(member string) bool {
	s := w.seen[member]
	return s != nil && s.beat.Leaving
}

// Eligible is who may own shards, sorted: those that are there, are not
// leaving, get on with their work, and reach Postgres if anybody does.
func (w *Watch) Eligible(now time.Time) []string {
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
		stalled := s.beat.InHand > 0 && s.beat.SinkDown == 0 && now.Sub(s.moved) >= w.cfg.Stall
		if !cutOff && !stalled {
			able = append(able, m)
		}
	}
	if len(able) == 0 {
		able = there // somebody has to try
	}
	slices.Sort(able)
	return able
}

// Stalled lists the members that have work in hand and make no progress.
func (w *Watch) Stalled(now time.Time) []string {
	var stalled []string
	for m, s := range w.seen {
		if !w.Gone(now, m) && s.beat.InHand > 0 && s.beat.SinkDown == 0 && now.Sub(s.moved) >= w.cfg.Stall {
			stalled = append(stalled, m)
		}
	}
	slices.Sort(stalled)
	return stalled
}
