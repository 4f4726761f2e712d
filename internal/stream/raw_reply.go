package stream

import (
	"io"
	"slices"
)

// rawReply takes a reply as the server wrote it. The driver's RawCmd lets its buffer
// grow by a quarter at a time and copies what it has each time, which the two hot reads
// pay for (docs/performance.md). What has taken a part of a reply cannot take another,
// so the command is never repeated.
type rawReply struct{ b []byte }

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
	size, end := len(r.b), len(r.b)+int(limited.N)
	r.grow(end - size)
	n, err := io.ReadFull(limited, r.b[size:end])
	r.b = r.b[:size+n]
	return int64(n), err
}

// grow makes room for n more bytes.
func (r *rawReply) grow(n int) {
	if need := len(r.b) + n; need > cap(r.b) {
		r.b = append(make([]byte, 0, max(2*cap(r.b), need)), r.b...)
	}
}

// bytes returns the reply. Entries share its memory and are counted by its size, so a
// buffer that is much larger is not kept.
func (r *rawReply) bytes() []byte {
	if cap(r.b) > 2*len(r.b) {
		r.b = slices.Clone(r.b)
	}
	return r.b
}

func (r *rawReply) size() int { return len(r.b) }
