package pipeline

import (
	"sync"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

type messageKind uint8

const (
	work    messageKind = iota + 1 // entries of a shard, in order
	granted                        // a shard begins under an epoch, on fresh state
	dropped                        // a shard is no longer ours
	asked                          // a request for a shard is to be run
	emptied                        // the queue of a shard in quarantine holds nothing
	retried                        // deferred entries of a shard whose time has come
)

// message is what a worker is told. Messages of one worker arrive in the order
// in which they were put.
type message struct {
	kind    messageKind
	shard   int
	grant   uint64
	epoch   int64
	token   string
	entries []telemetry.Entry
	request *protocol.Request

	quarantine protocol.Quarantine // of a shard that is granted

	deferred []protocol.Deferred
	done     func() // to be called when they are decided
}

// mailbox is a worker's queue. Putting never blocks, since it happens under the
// table's lock: what bounds it is the limit on what is in flight, which the
// dispatcher and the reader keep before they ask the server for more.
type mailbox struct {
	mu     sync.Mutex
	items  []message
	signal chan struct{} // size one, coalesced
}

func newMailbox() *mailbox { return &mailbox{signal: make(chan struct{}, 1)} }

func (m *mailbox) put(msg message) {
	m.mu.Lock()
	m.items = append(m.items, msg)
	m.mu.Unlock()
	ring(m.signal)
}

// waiting is how many messages have not been taken.
func (m *mailbox) waiting() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.items)
}

// take returns what has arrived, and hands back a slice to reuse.
func (m *mailbox) take(reuse []message) []message {
	m.mu.Lock()
	defer m.mu.Unlock()
	items := m.items
	clear(reuse[:cap(reuse)])
	m.items = reuse[:0]
	return items
}
