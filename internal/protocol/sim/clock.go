package sim

// forever is later than any run lasts.
const forever = int64(1) << 40

// event is something that happens at a moment of the virtual clock.
type event struct {
	at, due int64 // when it happens; when it would have, had its member not been frozen
	seq     uint64
	p       *proc // nil for what happens in a server or in the world
	fn      func()
}

func (e *event) before(o *event) bool {
	if e.at != o.at {
		return e.at < o.at
	}
	if e.due != o.due {
		return e.due < o.due
	}
	return e.seq < o.seq
}

// events is a heap by value: a run goes through thousands of them.
type events []event

func (h *events) push(e event) {
	*h = append(*h, e)
	q := *h
	for i := len(q) - 1; i > 0; {
		up := (i - 1) / 2
		if !q[i].before(&q[up]) {
			return
		}
		q[i], q[up] = q[up], q[i]
		i = up
	}
}

func (h *events) pop() event {
	q := *h
	first, last := q[0], len(q)-1
	q[0], q[last] = q[last], event{}
	q = q[:last]
	*h = q
	for i := 0; ; {
		down := 2*i + 1
		if down >= last {
			return first
		}
		if right := down + 1; right < last && q[right].before(&q[down]) {
			down = right
		}
		if !q[down].before(&q[i]) {
			return first
		}
		q[i], q[down] = q[down], q[i]
		i = down
	}
}

// after has fn happen in p, or in no member, once some milliseconds have passed.
func (w *world) after(ms int64, p *proc, fn func()) {
	w.seq++
	w.events.push(event{at: w.now + ms, due: w.now + ms, seq: w.seq, p: p, fn: fn})
}

// step runs the next event. It reports whether there was one before the limit.
func (w *world) step(limit int64) bool {
	for len(w.events) > 0 && w.events[0].at <= limit {
		e := w.events.pop()
		w.now = e.at
		if e.p != nil {
			if e.p.dead {
				continue
			}
			if e.p.frozenUntil > w.now {
				e.at = e.p.frozenUntil
				w.events.push(e)
				continue
			}
		}
		w.steps++
		e.fn()
		return true
	}
	return false
}
