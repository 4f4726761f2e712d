package pipeline

import (
	"sync"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

type messageKind uint8

const (
	work       messageKind = iota + 1 // entries of a shard, in order
	granted                           // a shard starts under an epoch, on fresh state
	dropped                           // a shard is no longer ours
	asked                             // a step of a request for a shard is to be run
	stepped                           // a step has ended
	emptied                           // the queue of a quarantined shard is empty
	retried                           // deferred entries of a shard that are due
	flushShard                        // what is in flight of a shard is to be committed at once
	leaving                           // work on a shard ends; its state is wanted
	wanted                            // devices of which some may be loaded ahead
	lookedUp                          // devices were looked up ahead
)

// message is an instruction to a worker. One worker gets its messages in the
// order in which they were put.
type message struct {
	kind    messageKind
	shard   int
	grant   uint64
	epoch   int64
	token   string
	entries []telemetry.Entry
	request *protocol.Request
	step    *step // that has ended

	quarantine protocol.Quarantine // of a shard that is granted
	apart      bool                // a shard that is granted is run apart, one entry first
	inherited  []byte              // state that its last owner left
	released   bool                // its last owner should have left its state
	acquired   bool                // a shard that is granted was acquired, and does not begin again here
	left       chan []byte         // of size one: where the state of one that is left goes

	deferred []protocol.Deferred
	devices  []string
	done     func()  // to be called when the deferred entries have an outcome, or none of the devices is left to be looked up
	looked   *lookUp // that has ended
}

// detached returns the message with entries that pin nothing else: it is to wait for long.
func (m *message) detached() message {
	own := *m
	own.entries = detached(m.entries)
	return own
}

func detached(entries []telemetry.Entry) []telemetry.Entry {
	own := make([]telemetry.Entry, len(entries))
	for i := range entries {
		own[i] = entries[i].Clone()
	}
	return own
}

// mailbox is a worker's queue. put never blocks, since it runs under the table's
// lock: the limit on what is in flight bounds it, which dispatcher and reader
// check before they read more.
type mailbox struct {
	mu     sync.Mutex
	items  []message
	signal chan struct{} // size one, coalesced
}

func newMailbox() *mailbox { return &mailbox{signal: make(chan struct{}, 1)} }

func (m *mailbox) put(msg message) {
	m.add(msg)
	wakeUp(m.signal)
}

// add is put without waking the worker: who adds several messages wakes it after the last,
// so that it commits them together.
func (m *mailbox) add(msg message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.items = append(m.items, msg)
}

// waiting returns the number of messages not taken yet.
func (m *mailbox) waiting() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.items)
}

// take returns the messages that have arrived and keeps reuse as its next buffer.
func (m *mailbox) take(reuse []message) []message {
	m.mu.Lock()
	defer m.mu.Unlock()
	items := m.items
	clear(reuse[:cap(reuse)])
	m.items = reuse[:0]
	return items
}

// each calls f for the entries that wait, until it says no.
func (m *mailbox) each(f func(entries []telemetry.Entry) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.items {
		if m.items[i].kind == work && !f(m.items[i].entries) {
			return
		}
	}
}
