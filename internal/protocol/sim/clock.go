package sim

// forever is later than the end of any run.
const forever = int64(1) << 40

// event happens at a moment of the virtual clock.
type event struct {
	at, due int64 // when it happens; when it would have happened had its member not been frozen
	seq     uint64
	p       *proc // nil for an event of a server or of the environment
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

// events is a heap of values: a run processes thousands of them.
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

// after schedules fn in p, or in no member, some milliseconds later.
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
