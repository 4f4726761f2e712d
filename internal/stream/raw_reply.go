package stream

import (
	"io"
	"slices"
)

// rawReply takes a reply as the server wrote it. The driver's RawCmd lets its buffer
// grow by a quarter at a time and copies what it has each time, which the two hot reads
// pay for (docs/performance.md). The driver repeats no command with such a writer, not
// even on a Cluster.
type rawReply struct {
	size int // expected, in bytes; nothing is allocated before the reply comes
	b    []byte
}

// Write implements io.Writer, for the headers of a reply.
func (r *rawReply) Write(p []byte) (int, error) {
	r.grow(len(p))
	r.b = append(r.b, p...)
	return len(p), nil
}

// ReadFrom implements io.ReaderFrom, for bulk strings: the driver passes each of them
// as an io.LimitedReader, which is read to its limit without a buffer in between.
func (r *rawReply) ReadFrom(from io.Reader) (int64, error) {
	limited, ok := from.(*io.LimitedReader)
	if !ok {
		return io.Copy(struct{ io.Writer }{r}, from)
	}
	begin, end := len(r.b), len(r.b)+int(limited.N)
	r.grow(end - begin)
	n, err := io.ReadFull(limited, r.b[begin:end])
	r.b = r.b[:begin+n]
	return int64(n), err
}

// grow makes room for n more bytes: twice as much as there is, but no more than replyBytes
// beyond it, since a single entry may be larger than all others together.
func (r *rawReply) grow(n int) {
	if need := len(r.b) + n; need > cap(r.b) {
		r.b = append(make([]byte, 0, max(r.size, need, min(2*cap(r.b), cap(r.b)+replyBytes))), r.b...)
	}
}

// bytes returns the reply. Entries share its memory and are counted by its length, so a
// buffer that is a quarter larger is not kept.
func (r *rawReply) bytes() []byte {
	if cap(r.b) > len(r.b)+len(r.b)/4 {
		r.b = slices.Clone(r.b)
	}
	return r.b
}
