package sim

import (
	"errors"
	"fmt"
)

// Errors a call can end with, as the pipeline classifies them.
var (
	errUnknown     = errors.New("outcome unknown")
	errUnavailable = errors.New("unavailable, nothing happened")
	errFenced      = errors.New("fenced")
	errConflict    = errors.New("stored already")
	errLost        = errors.New("dispatch lease or group has changed")
	errNotAssigned = errors.New("not assigned")
	errBlocked     = fmt.Errorf("locked by another session: %w", errUnavailable)
)

const (
	redisServer = iota
	postgresServer
	servers
)

// server is the network's view of Redis or Postgres.
type server struct {
	name    string
	run     int // server generation; another one may hold an older state
	downTil int64
	slowTil int64
	timeout int64 // after which clients give up on a request
}

// link is the network between one member and one server.
type link struct {
	cutTil   int64
	lose     int   // replies still to be lost
	delay    int64 // before the next request takes effect
	knownRun int   // the server generation that the member last spoke to
}

// call sends a request. effect runs in the server later, unless the request is
// lost, and answers through its argument; done gets the answer, or errUnknown.
// A request was decided on what one generation of the server said, so another
// generation rejects it, and the member learns of the change.
func call[T any](p *proc, which int, what string, effect func(answer func(T, error)), done func(T, error)) {
	w, s, l := p.w, &p.w.servers[which], &p.links[which]
	var none T
	ended := false
	end := func(v T, err error) {
		if ended {
			return
		}
		ended = true
		if err != nil {
			w.logf(p, "%s: %v", what, err)
		}
		done(v, err)
	}
	run := l.knownRun
	w.after(s.timeout, p, func() { end(none, errUnknown) })
	way := p.latency()
	if w.now < s.slowTil && which == redisServer {
		way += p.rng.Int64N(200)
	}
	if l.delay > 0 {
		w.logf(p, "%s: request held up for %d ms", what, l.delay)
		way += l.delay
		l.delay = 0
	}
	if w.now < l.cutTil && p.rng.IntN(2) == 0 {
		w.logf(p, "%s: request lost", what)
		return
	}
	w.after(way, nil, func() {
		if w.now < s.downTil {
			w.after(p.latency(), p, func() { end(none, errUnavailable) })
			return
		}
		if s.run != run {
			if p.keepsOver(which) {
				l.knownRun = s.run
			} else {
				present := s.run
				w.after(p.latency(), p, func() {
					p.reconnected(which, present)
					end(none, errUnknown)
				})
				return
			}
		}
		then := s.run
		effect(func(v T, err error) {
			if l.lose > 0 || w.now < l.cutTil {
				l.lose = max(0, l.lose-1)
				w.logf(p, "%s: took effect, reply lost", what)
				return
			}
			if s.run != then {
				return
			}
			w.after(p.latency(), p, func() { end(v, err) })
		})
	})
}

// latency returns the one-way delay of the network.
func (p *proc) latency() int64 {
	if p.rng.IntN(12) == 0 {
		return 20 + p.rng.Int64N(150)
	}
	return 1 + p.rng.Int64N(5)
}
