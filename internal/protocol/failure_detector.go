package protocol

import (
	"slices"
	"strings"
	"time"
)

// Beat is what a member's heartbeat reports.
type Beat struct {
	Member        string        // identity and incarnation
	Number        uint64        // counts the beats of this incarnation
	Leaving       bool          // it is shutting down and wants its shards reassigned
	Left          bool          // it is its last beat
	SinkDown      time.Duration // for how long Postgres has not answered it; 0 while it does
	InFlight      int           // entries received and not finished
	Progress      uint64        // advances whenever something is committed or finished
	CallsReturned uint64        // advances whenever a server call of a worker returns, successfully or not
	Blocked       bool          // its last commit failed because another session held a lock
	Age           time.Duration // since it was written, by the server's clock; 0 where that is not known
}

// FailureDetectorConfig sets when a member's shards are moved.
type FailureDetectorConfig struct {
	TTL       time.Duration // silence after which a member is gone
	SinkGrace time.Duration // how long it may be without Postgres while another member reaches it
	Stall     time.Duration // how long it may have entries in flight without progress
}

// FailureDetector evaluates members by their beats and the observer's own
// clock: what counts is when a beat was seen to advance, or how long before that the
// server says it was written, but never before the observation before, which did not find
// it. So no clock of a server makes a member gone earlier than by the time between two
// observations. That a heartbeat key is missing or frozen proves nothing alone.
type FailureDetector struct {
	cfg    FailureDetectorConfig
	seen   map[string]*memberState
	fresh  time.Time // no member is declared gone before this
	last   time.Time // of the observations, or of what voids them
	sinkUp time.Time // since when one member or another was always seen to reach Postgres; zero while none does
}

type memberState struct {
	beat           Beat
	advanced       time.Time // when its number last advanced, at the latest
	moved          time.Time // when it last made progress or was idle
	callReturnedAt time.Time // when one of its calls last returned, or it was idle
	progressedAt   time.Time // when it last made progress; zero before the first
	present        bool      // found by the last poll
	replaced       bool      // another member has its identity, which it gets of one that left or expired

	out    bool      // it stalled, and another member may do better
	frozen bool      // none of its calls returned either
	outAt  time.Time // when that was last found
}

// note records a beat that follows an earlier one. The last observation was since ago.
func (s *memberState) note(now time.Time, since time.Duration, b Beat) {
	if b.Number != s.beat.Number {
		s.advanced = now.Add(-max(0, min(b.Age, since)))
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
	b.Left = b.Left || s.beat.Left // a beat may come late
	s.beat = b
}

// NewFailureDetector returns a detector without members.
func NewFailureDetector(cfg FailureDetectorConfig) *FailureDetector {
	return &FailureDetector{cfg: cfg, seen: make(map[string]*memberState)}
}

// Observe records the beats found by one poll.
func (w *FailureDetector) Observe(now time.Time, beats []Beat) {
	for _, s := range w.seen {
		s.present = false
	}
	taken := make(map[string]bool, len(beats)) // identities
	for _, b := range beats {
		taken[Identity(b.Member)] = true
		s := w.seen[b.Member]
		if s == nil {
			if b.Left {
				continue // before it was seen
			}
			s = &memberState{beat: b, advanced: now, moved: now, callReturnedAt: now}
			w.seen[b.Member] = s
		}
		s.note(now, now.Sub(w.last), b)
		s.present = true
	}
	w.last = now
	for m, s := range w.seen {
		s.replaced = !s.present && taken[Identity(m)]
		if w.Gone(now, m) && !s.present {
			delete(w.seen, m)
		}
	}
	w.noteSink(now)
	w.evaluate(now)
}

// noteSink records whether any member reaches Postgres, by the beats of this observation.
func (w *FailureDetector) noteSink(now time.Time) {
	for m, s := range w.seen {
		if s.present && s.beat.SinkDown == 0 && !w.Gone(now, m) && !s.beat.Leaving && !s.beat.Left {
			if w.sinkUp.IsZero() {
				w.sinkUp = now
			}
			return
		}
	}
	w.sinkUp = time.Time{}
}

// Identity returns that of a member, whose name has a point and its incarnation behind it.
func Identity(member string) string {
	if i := strings.LastIndexByte(member, '.'); i >= 0 {
		return member[:i]
	}
	return member
}

// evaluate marks members that should lose their shards: entries in flight,
// Postgres reachable, no progress for Stall, and either
//
//	(a) no server call has returned for Stall (frozen), or
//	(b) another member made progress at least Stall/2 later than this one last did,
//	    and it does not wait for a lock, for which every owner of the shard would wait.
//
// The Stall/2 is for causes that stop all members, though not at the same
// moment. If no member makes progress, (b) marks none: the cause would move
// along with the shards.
//
// Without shards a member is idle, which is no sign of health. So it stays
// marked: if frozen until a call returns, otherwise for another Stall.
func (w *FailureDetector) evaluate(now time.Time) {
	var lastProgress time.Time // the most recent progress of a member that is not gone, if within Stall
	for m, s := range w.seen {
		if now.Sub(s.progressedAt) < w.cfg.Stall && s.progressedAt.After(lastProgress) && !w.Gone(now, m) {
			lastProgress = s.progressedAt
		}
	}
	for _, s := range w.seen {
		better := lastProgress.Sub(s.moved) >= w.cfg.Stall/2 && !s.beat.Blocked
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

// RedisUnavailable records that Redis did not answer. For one TTL after it is
// back no member is declared gone: members could not beat either.
func (w *FailureDetector) RedisUnavailable(now time.Time) {
	w.fresh, w.last, w.sinkUp = now.Add(w.cfg.TTL), now, time.Time{}
	for _, s := range w.seen {
		s.advanced, s.moved, s.callReturnedAt = now, now, now
	}
}

// Gone reports whether a member is gone: it was never seen, it announced its leaving and
// left or is not found any more, another one has its identity, or it has been silent for a
// TTL, as one that left without an announcement, since that may be stuck.
func (w *FailureDetector) Gone(now time.Time, member string) bool {
	s := w.seen[member]
	if s == nil {
		return !now.Before(w.fresh) || w.succeeded(member)
	}
	if s.beat.Leaving && (s.beat.Left || !s.present) || s.replaced {
		return true
	}
	return now.Sub(s.advanced) >= w.cfg.TTL && !now.Before(w.fresh)
}

// succeeded reports whether another member was found that has the identity of one.
func (w *FailureDetector) succeeded(member string) bool {
	for m, s := range w.seen {
		if s.present && m != member && Identity(m) == Identity(member) {
			return true
		}
	}
	return false
}

// Expiry returns when the first of the members that are there will be gone if nothing more
// is heard of it, zero where there are none.
func (w *FailureDetector) Expiry(now time.Time) (first time.Time) {
	for m, s := range w.seen {
		if w.Gone(now, m) {
			continue
		}
		at := s.advanced.Add(w.cfg.TTL) // never before fresh: Redis that was away sets both
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	return first
}

// Leaving reports whether a live member announced that it is shutting down.
func (w *FailureDetector) Leaving(member string) bool {
	s := w.seen[member]
	return s != nil && s.beat.Leaving
}

// Works reports whether a member was seen to commit something within a time.
func (w *FailureDetector) Works(now time.Time, member string, within time.Duration) bool {
	s := w.seen[member]
	return s != nil && !s.progressedAt.IsZero() && now.Sub(s.progressedAt) < within
}

// Willing reports whether a member releases a shard that is assigned to another one: it
// is live, has not left, works, and reaches Postgres.
func (w *FailureDetector) Willing(now time.Time, member string) bool {
	s := w.seen[member]
	return s != nil && !w.Gone(now, member) && !s.beat.Left && !s.out && !w.CutOff(now, member)
}

// CutOff reports whether a member has not reached Postgres for SinkGrace while another one
// did for as long. After an outage of Postgres the members find it again one after the
// other, and the first of them proves nothing of the others yet.
func (w *FailureDetector) CutOff(now time.Time, member string) bool {
	s := w.seen[member]
	return s != nil && s.beat.SinkDown >= w.cfg.SinkGrace && !w.sinkUp.IsZero() && now.Sub(w.sinkUp) >= w.cfg.SinkGrace
}

// Eligible returns the members that may own shards, sorted: those that are
// live, not leaving, not marked as stalled, and not cut off from Postgres.
func (w *FailureDetector) Eligible(now time.Time) []string {
	var there, able []string
	for m, s := range w.seen {
		if w.Gone(now, m) || s.beat.Leaving || s.beat.Left {
			continue
		}
		there = append(there, m)
	}
	for _, m := range there {
		if !w.CutOff(now, m) && !w.seen[m].out {
			able = append(able, m)
		}
	}
	if len(able) == 0 {
		able = there // a fleet without any eligible member would stop
	}
	slices.Sort(able)
	return able
}

// Stalled returns the members that have entries in flight without progress, and
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
