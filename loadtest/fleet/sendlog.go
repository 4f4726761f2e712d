package fleet

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Sent is one entry of the send log: what was sent and which ID it got.
type Sent struct {
	ID       telemetry.EntryID
	ReplayOf telemetry.EntryID // the dead letter's source entry, for one that was sent again
	Class    telemetry.Class   // under which it has to be dead-lettered, "" for a record
	Junk     string            // the kind of made-up junk, "" for all else
	Sum      [32]byte          // of the names and values of an entry with a class, zero where unknown
	Message  Message           // of a record; of others only the device they claim
}

// StreamTime returns the stream time of the entry, or of the one it is a replay of.
func (s *Sent) StreamTime() time.Time {
	if !s.ReplayOf.IsZero() {
		return s.ReplayOf.Time()
	}
	return s.ID.Time()
}

// SumOf returns the sum of an entry's names and values, each with its length.
func SumOf(fields []string) [32]byte {
	h := sha256.New()
	for _, f := range fields {
		_, _ = fmt.Fprintf(h, "%d:%s", len(f), f) // a hash takes everything
	}
	return [32]byte(h.Sum(nil))
}

// The log begins with this line; each entry is a length and that many bytes.
const logMagic = "send log 2\n"

// maxSentBytes bounds an entry of the log, so that a damaged length is noticed.
const maxSentBytes = 16 << 20

// LogWriter writes a send log, about 170 bytes an entry. It is used by one
// goroutine.
type LogWriter struct {
	w   *bufio.Writer
	buf []byte
	n   int
}

// NewLogWriter begins a log.
func NewLogWriter(w io.Writer) (*LogWriter, error) {
	l := &LogWriter{w: bufio.NewWriterSize(w, 1<<18)}
	if _, err := l.w.WriteString(logMagic); err != nil {
		return nil, fmt.Errorf("begin send log: %w", err)
	}
	return l, nil
}

// Append adds an entry.
func (l *LogWriter) Append(s *Sent) error {
	l.buf = appendSent(l.buf[:0], s)
	var head [binary.MaxVarintLen64]byte
	n := binary.PutUvarint(head[:], uint64(len(l.buf)))
	if _, err := l.w.Write(head[:n]); err != nil {
		return fmt.Errorf("append entry %s to send log: %w", s.ID, err)
	}
	if _, err := l.w.Write(l.buf); err != nil {
		return fmt.Errorf("append entry %s to send log: %w", s.ID, err)
	}
	l.n++
	return nil
}

// Len returns the number of entries appended.
func (l *LogWriter) Len() int { return l.n }

// Flush hands on what is buffered.
func (l *LogWriter) Flush() error {
	if err := l.w.Flush(); err != nil {
		return fmt.Errorf("flush send log: %w", err)
	}
	return nil
}

// Log is a send log for reading, from its beginning or at any entry. Several
// goroutines may use it.
type Log struct {
	r    io.ReaderAt
	size int64
	c    io.Closer
}

// OpenLog opens the log in a file.
func OpenLog(file string) (*Log, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("open send log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open send log: %w", err), f.Close())
	}
	return &Log{r: f, size: info.Size(), c: f}, nil
}

// NewLog reads a log of the given size, for example one in memory.
func NewLog(r io.ReaderAt, size int64) *Log { return &Log{r: r, size: size} }

// Close closes the file of the log, if it has one.
func (l *Log) Close() error {
	if l.c == nil {
		return nil
	}
	return l.c.Close()
}

// Scan calls visit for each entry in the order of sending, with the place at
// which At finds it again. The entry is visit's to keep.
func (l *Log) Scan(visit func(place int64, s *Sent) error) error {
	r := bufio.NewReaderSize(io.NewSectionReader(l.r, 0, l.size), 1<<18)
	magic := make([]byte, len(logMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != logMagic {
		return errors.New("read send log: this is no send log, name the file that a run wrote")
	}
	place := int64(len(logMagic))
	var body []byte
	for {
		size, err := binary.ReadUvarint(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil || size > maxSentBytes {
			return l.damaged(place)
		}
		if uint64(cap(body)) < size {
			body = make([]byte, size)
		}
		body = body[:size]
		if _, err := io.ReadFull(r, body); err != nil {
			return l.damaged(place)
		}
		s, ok := parseSent(body)
		if !ok {
			return l.damaged(place)
		}
		if err := visit(place, &s); err != nil {
			return err
		}
		place += int64(len(binary.AppendUvarint(nil, size))) + int64(size)
	}
}

// At returns the entry at a place that Scan named.
func (l *Log) At(place int64) (Sent, error) {
	buf := make([]byte, 512)
	n, err := l.r.ReadAt(buf, place)
	if err != nil && !errors.Is(err, io.EOF) {
		return Sent{}, fmt.Errorf("read send log: %w", err)
	}
	size, head := binary.Uvarint(buf[:n])
	if head <= 0 || size > maxSentBytes {
		return Sent{}, l.damaged(place)
	}
	if need := head + int(size); need > n {
		buf = make([]byte, need)
		if _, err := l.r.ReadAt(buf, place); err != nil {
			return Sent{}, l.damaged(place)
		}
	}
	s, ok := parseSent(buf[head : head+int(size)])
	if !ok {
		return Sent{}, l.damaged(place)
	}
	return s, nil
}

func (l *Log) damaged(place int64) error {
	return fmt.Errorf("read send log: damaged or cut off at byte %d of %d, the run that wrote it did not end well", place, l.size)
}

func appendSent(dst []byte, s *Sent) []byte {
	m := &s.Message
	dst = appendID(dst, s.ID)
	dst = appendID(dst, s.ReplayOf)
	dst = appendText(dst, s.Junk)
	dst = appendText(dst, string(s.Class))
	dst = appendText(dst, m.DeviceID)
	if s.Class != "" {
		return append(dst, s.Sum[:]...)
	}
	dst = appendText(dst, m.Codec)
	dst = binary.AppendVarint(dst, m.Time.Unix())
	dst = binary.AppendUvarint(dst, uint64(m.Time.Nanosecond()))
	for _, x := range [...]float64{m.Latitude, m.Longitude, m.Altitude, m.Angle, m.Speed} {
		dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(x))
	}
	dst = binary.AppendVarint(dst, int64(m.Satellites))
	dst = binary.AppendVarint(dst, int64(m.Priority))
	dst = binary.AppendUvarint(dst, uint64(len(m.Attributes)))
	for i := range m.Attributes {
		a := &m.Attributes[i]
		dst = appendText(dst, a.Key)
		dst = append(dst, byte(a.Kind))
		switch a.Kind {
		case KindNumber:
			dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(a.Number))
		case KindBytes, KindLegacyBytes:
			dst = appendText(dst, string(a.Bytes))
		default:
			dst = appendText(dst, a.Text)
		}
	}
	return dst
}

func appendID(dst []byte, id telemetry.EntryID) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(dst, id.Ms), id.Seq)
}

func appendText(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

func parseSent(b []byte) (Sent, bool) {
	p := parser{b: b}
	var s Sent
	m := &s.Message
	s.ID, s.ReplayOf = p.id(), p.id()
	s.Junk = p.text()
	s.Class = telemetry.Class(p.text())
	m.DeviceID = p.text()
	if s.Class != "" {
		copy(s.Sum[:], p.take(uint64(len(s.Sum))))
	} else {
		m.Codec = p.text()
		m.Time = time.Unix(p.varint(), int64(p.uvarint())).UTC()
		for _, x := range [...]*float64{&m.Latitude, &m.Longitude, &m.Altitude, &m.Angle, &m.Speed} {
			*x = p.float()
		}
		m.Satellites, m.Priority = int(p.varint()), int(p.varint())
		// Each attribute takes at least three bytes.
		if n := p.uvarint(); n > 0 && n <= uint64(len(p.b)) {
			m.Attributes = make([]Attribute, n)
		} else if n > 0 {
			return Sent{}, false
		}
		for i := range m.Attributes {
			p.attribute(&m.Attributes[i])
		}
	}
	return s, !p.failed && len(p.b) == 0
}

// parser takes values from the front of b and remembers whether one was
// missing.
type parser struct {
	b      []byte
	failed bool
}

func (p *parser) attribute(a *Attribute) {
	a.Key = p.text()
	a.Kind = AttributeKind(p.take(1)[0])
	switch a.Kind {
	case KindNumber:
		a.Number = p.float()
	case KindBytes, KindLegacyBytes:
		a.Bytes = []byte(p.text())
	default:
		a.Text = p.text()
	}
}

// take always returns n bytes, so that callers need no checks of their own.
func (p *parser) take(n uint64) []byte {
	if n > uint64(len(p.b)) {
		p.failed, p.b = true, nil
		return make([]byte, min(n, 8))
	}
	taken := p.b[:n]
	p.b = p.b[n:]
	return taken
}

func (p *parser) uvarint() uint64 {
	x, n := binary.Uvarint(p.b)
	p.took(n)
	return x
}

func (p *parser) varint() int64 {
	x, n := binary.Varint(p.b)
	p.took(n)
	return x
}

func (p *parser) took(n int) {
	if n <= 0 {
		p.failed, p.b = true, nil
		return
	}
	p.b = p.b[n:]
}

func (p *parser) id() telemetry.EntryID {
	return telemetry.EntryID{Ms: p.uvarint(), Seq: p.uvarint()}
}

func (p *parser) float() float64 {
	return math.Float64frombits(binary.LittleEndian.Uint64(p.take(8)))
}

func (p *parser) text() string { return string(p.take(p.uvarint())) }
