package stream

import (
	"errors"
	"strconv"
	"unsafe"

	"github.com/trmtracking/processor/internal/telemetry"
)

// The client's own parser of stream entries makes a map and a dozen objects of
// each. So entries are read raw and parsed here into strings that point into
// the reply: two allocations for a whole reply.

var errReply = errors.New("reply is not in the form of a stream read")

// reply walks a raw RESP2 or RESP3 reply.
type reply struct {
	text string
	pos  int
}

func newReply(raw []byte) *reply {
	// The reply's bytes are never written to again, so sharing them is safe.
	return &reply{text: unsafe.String(unsafe.SliceData(raw), len(raw))}
}

// line returns the type byte and the rest of the current line.
func (r *reply) line() (byte, string, error) {
	if r.pos >= len(r.text) {
		return 0, "", errReply
	}
	start := r.pos + 1
	for i := start; i+1 < len(r.text); i++ {
		if r.text[i] == '\r' {
			r.pos = i + 2
			return r.text[start-1], r.text[start:i], nil
		}
	}
	return 0, "", errReply
}

// array reads an array's header: its length, or -1 for the null of either protocol.
func (r *reply) array() (int, error) {
	kind, rest, err := r.line()
	if err != nil {
		return 0, err
	}
	switch kind {
	case '_':
		return -1, nil
	case '-':
		return 0, serverError(rest)
	case '*', '%', '~':
		n, err := strconv.Atoi(rest)
		if err != nil || n > len(r.text) {
			return 0, errReply
		}
		return n, nil
	default:
		return 0, errReply
	}
}

// bulk reads a bulk string.
func (r *reply) bulk() (string, error) {
	kind, rest, err := r.line()
	if err != nil {
		return "", err
	}
	if kind != '$' {
		return "", errReply
	}
	n, err := strconv.Atoi(rest)
	if err != nil || n < 0 || n > len(r.text)-r.pos-2 {
		return "", errReply
	}
	s := r.text[r.pos : r.pos+n]
	r.pos += n + 2
	return s, nil
}

// batch holds the entries of one reply, with the text of their IDs.
type batch struct {
	entries []telemetry.Entry
	ids     []string
}

// parseRead parses the reply to XREAD or XREADGROUP of one stream. A null reply
// has no entries. An entry without fields was trimmed or deleted while it was
// pending.
func parseRead(raw []byte) (batch, error) {
	r := newReply(raw)
	streams, err := r.array()
	if err != nil || streams <= 0 {
		return batch{}, err
	}
	if raw[0] == '*' { // the second protocol's form: [[stream, entries]]
		if _, err := r.array(); err != nil {
			return batch{}, err
		}
	}
	if _, err := r.bulk(); err != nil {
		return batch{}, err
	}
	return r.batch()
}

// parseRange parses the reply to XRANGE.
func parseRange(raw []byte) (batch, error) {
	return newReply(raw).batch()
}

func (r *reply) batch() (batch, error) {
	n, err := r.array()
	if err != nil || n <= 0 {
		return batch{}, err
	}
	b := batch{entries: make([]telemetry.Entry, n), ids: make([]string, n)}
	fields := make([]string, 0, n*8) // the contract has four fields; more just grow it
	for i := range n {
		if _, err := r.array(); err != nil {
			return batch{}, err
		}
		id, err := r.bulk()
		if err != nil {
			return batch{}, err
		}
		e := &b.entries[i]
		b.ids[i] = id
		if e.ID, err = telemetry.ParseEntryID(id); err != nil {
			return batch{}, err
		}
		count, err := r.array()
		if err != nil {
			return batch{}, err
		}
		if count < 0 {
			continue
		}
		start := len(fields)
		for range count {
			s, err := r.bulk()
			if err != nil {
				return batch{}, err
			}
			fields = append(fields, s)
		}
		e.Fields = fields[start:len(fields):len(fields)]
	}
	return b, nil
}
