package protocol

import (
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Position is a place in the stream and how many entries were read until there, -1 for unknown.
type Position struct {
	ID   telemetry.EntryID
	Read int64
}

// Pages are the reads of a dispatcher that the group's last-delivered ID has not passed, since
// entries of them are unqueued: in flight in this instance and on no queue.
//
// Invariant: last-delivered ID < every entry that is unqueued and not finished. The next dispatcher
// begins there, so that a dispatcher that dies needs nothing repaired.
type Pages struct {
	settled    Position // the last-delivered ID
	pages      []page
	dispatches int // since Begin
}

type page struct {
	end Position
	at  time.Time
}

// Begin starts at the last-delivered ID, under a new dispatch lease.
func (p *Pages) Begin(at telemetry.EntryID) {
	p.settled, p.pages, p.dispatches = Position{at, -1}, p.pages[:0], 0
}

// Settled returns the last-delivered ID.
func (p *Pages) Settled() telemetry.EntryID { return p.settled.ID }

// Dispatches returns the number of dispatches since Begin. A server that has lost one that moved neither
// end, and only put entries on queues, is known by it.
func (p *Pages) Dispatches() int { return p.dispatches }

// End returns where the next read begins.
func (p *Pages) End() telemetry.EntryID {
	if n := len(p.pages); n > 0 {
		return p.pages[n-1].end.ID
	}
	return p.settled.ID
}

// Open returns the number of pages that are not settled.
func (p *Pages) Open() int { return len(p.pages) }

// Overdue returns the end of the last page that was read before a time and is not settled.
func (p *Pages) Overdue(before time.Time) (end telemetry.EntryID, ok bool) {
	for _, page := range p.pages {
		if page.at.Before(before) {
			end, ok = page.end.ID, true
		}
	}
	return end, ok
}

// Settles returns how far the last-delivered ID may move: to the end of the last page before
// the first entry that is unqueued, or of all pages if none is.
func (p *Pages) Settles(firstUnqueued telemetry.EntryID, found bool) Position {
	to := p.settled
	for _, page := range p.pages {
		if found && firstUnqueued.Compare(page.end.ID) <= 0 {
			break
		}
		to = page.end
	}
	return to
}

// Dispatched records a dispatch that moved the last-delivered ID, and a page that was read by it up to an
// end; the end of the last one if it read nothing.
func (p *Pages) Dispatched(settled telemetry.EntryID, end Position, at time.Time) {
	if p.End() == end.ID {
		if n := len(p.pages); n > 0 {
			p.pages[n-1].end = end
		}
	} else {
		p.pages = append(p.pages, page{end, at})
	}
	n := 0
	for n < len(p.pages) && p.pages[n].end.ID.Compare(settled) <= 0 {
		n++
	}
	p.pages = append(p.pages[:0], p.pages[n:]...)
	p.settled.ID = settled
	p.dispatches++
}
