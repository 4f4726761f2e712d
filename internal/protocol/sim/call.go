package sim

import "errors"

// What a call can end with, in the words of the pipeline.
var (
	errUnknown     = errors.New("outcome unknown")
	errUnavailable = errors.New("unavailable, nothing happened")
	errFenced      = errors.New("fenced")
	errConflict    = errors.New("stored already")
	errLost        = errors.New("turn or group is not what it was")
	errNotAssigned = errors.New("not assigned")
)

const (
	redisServer = iota
	postgresServer
	servers
)

// server is what the network knows of Redis or Postgres.
type server struct {
	name    string
	run     int // which run of it answers; another one may hold an older state
	downTil int64
	slowTil int64
	timeout int64 // after which clients give a request up
}

// link is the network between one member and one server.
type link struct {
	cutTil   int64
	lose     int   // replies that will be lost
	delay    int64 // before the next request takes effect
	knownRun int   // the run of the server that the member last spoke to
}

// call sends a request: effect happens in the server, later, unless the request is
// lost, and answers by its argument. done gets the answer, or errUnknown.
// What a member sends it decided on what a run of the server told it, so
// another run refuses it, and the member hears of the change.
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

// latency is the time one way through the network takes.
func (p *proc) latency() int64 {
	if p.rng.IntN(12) == 0 {
		return 20 + p.rng.Int64N(150)
	}
	return 1 + p.rng.Int64N(5)
}
