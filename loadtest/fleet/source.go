package fleet

import (
	"time"
)

// Item is one entry to be sent.
type Item struct {
	At      time.Duration // when it is due, from the beginning of the run
	Message Message       // what it says, unless it is junk
	Junk    *Junk         // set when the entry is no valid record
}

// Fields returns the names and values of the entry.
func (it *Item) Fields() []string {
	if it.Junk != nil {
		return it.Junk.Fields
	}
	return EntryFields(&it.Message)
}

// Source yields items in the order in which they are due. It is used by one
// goroutine.
type Source interface {
	// Next returns the next item, or false at the end.
	Next() (Item, bool)
}

// Collect reads a source to its end.
func Collect(s Source) []Item {
	var items []Item
	for it, ok := s.Next(); ok; it, ok = s.Next() {
		items = append(items, it)
	}
	return items
}
