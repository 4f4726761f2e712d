package sim

import "container/heap"

// forever is later than any run lasts.
const forever = int64(1) << 40

// event is something that happens at a moment of the virtual clock.
type event struct {
	at, due int64 // when it happens; when it would have, had its member not been frozen
	seq     uint64
	p       *proc // nil for what happens in a server or in the world
	fn      func()
}

type events []*event

func (e events) Len() int      { return len(e) }
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e events) Less(i, j int) bool {
	a, b := e[i], e[j]
	if a.at != b.at {
		return a.at < b.at
	}
	if a.due != b.due {
		return a.due < b.due
	}
	return a.seq < b.seq
}
func (e *events) Push(x any) { *e = append(*e, x.(*event)) }

func (e *events) Pop() any {
	old := *e
	last := old[len(old)-1]
	*e = old[:len(old)-1]
	return last
}

// after has fn happen in p, or in no member, once some milliseconds have passed.
func (w *world) after(ms int64, p *proc, fn func()) {
	w.seq++
	heap.Push(&w.events, &event{at: w.now + ms, due: w.now + ms, seq: w.seq, p: p, fn: fn})
}

// step runs the next event. It tells whether there was one before the limit.
func (w *world) step(limit int64) bool {
	for len(w.events) > 0 && w.events[0].at <= limit {
		e := heap.Pop(&w.events).(*event)
		w.now = e.at
		if e.p != nil {
			if e.p.dead {
				continue
			}
			if e.p.frozenUntil > w.now {
				e.at = e.p.frozenUntil
				heap.Push(&w.events, e)
				continue
			}
		}
		w.steps++
		e.fn()
		return true
	}
	return false
}
