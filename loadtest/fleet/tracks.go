package fleet

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Tracks are recorded fixes of any number of devices, in the order of their
// files.
type Tracks struct {
	fixes []Message
}

// Len returns the number of fixes.
func (t *Tracks) Len() int { return len(t.fixes) }

// ReadTracks reads track files one after the other: CSV or GPX by the name,
// either with .gz behind it. A device that occurs in several files continues in
// the next.
func ReadTracks(files ...string) (*Tracks, error) {
	t := &Tracks{}
	for _, file := range files {
		if err := t.readFile(file); err != nil {
			return nil, fmt.Errorf("read tracks %s: %w", file, err)
		}
	}
	if len(t.fixes) == 0 {
		return nil, errors.New("read tracks: no fixes, name at least one file that has some")
	}
	return t, nil
}

func (t *Tracks) readFile(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	var r io.Reader = bufio.NewReaderSize(f, 1<<16)
	name := strings.ToLower(filepath.Base(file))
	if base, zipped := strings.CutSuffix(name, ".gz"); zipped {
		if r, err = gzip.NewReader(r); err != nil {
			return err
		}
		name = base
	}
	switch filepath.Ext(name) {
	case ".gpx":
		return t.AddGPX(r, strings.TrimSuffix(name, ".gpx"))
	case ".csv":
		return t.AddCSV(r, strings.TrimSuffix(name, ".csv"))
	default:
		return errors.New("want a name that ends in .csv or .gpx, with or without .gz")
	}
}

// The columns of a track file, in any order; others are passed over.
var trackColumns = [...]string{
	"ts", "latitude", "longitude", "altitude", "angle", "speed_kmh", "satellites", "priority", "device_id", "io",
}

// The places of columns in trackColumns that are treated by themselves.
const (
	columnTS         = 0
	lastRequired     = 2
	columnSatellites = 6
	columnDevice     = 8
	columnIO         = 9
	columnNumbers    = 1 // the first of those that hold numbers, up to columnDevice
)

// fewestSatellites is what the fixes of a track have that does not say how many:
// with none they would be no fixes to a system with the default MIN_SATELLITES.
const fewestSatellites = 1

// AddCSV adds the rows of a CSV file with a header line that names the columns.
// ts, latitude and longitude have to be there. altitude, angle, speed_kmh and
// priority are 0 where there is no column or the cell is empty, and satellites
// are then the fewest that make a fix. Without a column device_id all rows are of the device given. io holds IO
// elements as hex, like "239=01;78=0000018BCFE56800"; without it records have
// no attributes. The codec is 8.
func (t *Tracks) AddCSV(r io.Reader, device string) error {
	// Excel and others put a byte order mark first.
	br := bufio.NewReader(r)
	if mark, _ := br.Peek(3); bytes.Equal(mark, []byte("\xef\xbb\xbf")) {
		_, _ = br.Discard(3)
	}
	rows := csv.NewReader(br)
	rows.ReuseRecord = true
	header, err := rows.Read()
	if errors.Is(err, io.EOF) {
		return errors.New("no header line, want the columns " + strings.Join(trackColumns[:], ","))
	}
	if err != nil {
		return err
	}
	var column [len(trackColumns)]int
	for i, name := range trackColumns {
		column[i] = -1
		for at, have := range header {
			if strings.TrimSpace(have) == name {
				column[i] = at
			}
		}
		if column[i] < 0 && i <= lastRequired {
			return fmt.Errorf("no column %s, want %s", name, strings.Join(trackColumns[:], ","))
		}
	}
	devices := map[string]string{}
	for {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		c := cells{row: row, column: column}
		m := c.message(device, devices)
		if c.err != nil {
			line, _ := rows.FieldPos(0)
			return fmt.Errorf("line %d: %w", line, c.err)
		}
		t.fixes = append(t.fixes, m)
	}
}

// cells reads one row and keeps its first error.
type cells struct {
	row    []string
	column [len(trackColumns)]int
	err    error
}

// message reads the row. A device's name is kept once, in devices.
func (c *cells) message(device string, devices map[string]string) Message {
	m := Message{DeviceID: device, Codec: "8"}
	if c.column[columnDevice] >= 0 {
		var known bool
		if m.DeviceID, known = devices[c.text(columnDevice)]; !known {
			m.DeviceID = strings.Clone(c.text(columnDevice))
			devices[m.DeviceID] = m.DeviceID
		}
	}
	if at, err := time.Parse(time.RFC3339Nano, c.text(columnTS)); err != nil {
		c.fail(columnTS, "want a time like 2026-01-02T03:04:05.678Z")
	} else {
		// The wire has milliseconds.
		m.Time = at.UTC().Truncate(time.Millisecond)
	}
	var satellites, priority float64
	for i, dst := range []*float64{
		&m.Latitude, &m.Longitude, &m.Altitude, &m.Angle, &m.Speed, &satellites, &priority,
	} {
		*dst = c.number(columnNumbers + i)
	}
	m.Satellites, m.Priority = int(satellites), int(priority)
	if c.text(columnSatellites) == "" {
		m.Satellites = fewestSatellites
	}
	if text := c.text(columnIO); text != "" {
		m.Attributes = c.elements(text)
	}
	return m
}

// elements reads IO elements. What has 1, 2 or 4 bytes is a number, what has 8
// a big integer, all else bytes, as the ingestion service has it.
func (c *cells) elements(text string) []Attribute {
	var attributes []Attribute
	for element := range strings.SplitSeq(text, ";") {
		id, digits, _ := strings.Cut(element, "=")
		value, err := hex.DecodeString(digits)
		if err != nil || id == "" {
			c.fail(columnIO, "want elements like 239=01;240=00")
			return nil
		}
		id = strings.Clone(id)
		var padded [8]byte
		switch len(value) {
		case 1, 2, 4, 8:
			copy(padded[8-len(value):], value)
			n := binary.BigEndian.Uint64(padded[:])
			if len(value) == 8 {
				attributes = append(attributes, BigIntAttribute(id, strconv.FormatUint(n, 10)))
			} else {
				attributes = append(attributes, NumberAttribute(id, float64(n)))
			}
		default:
			attributes = append(attributes, BytesAttribute(id, value))
		}
	}
	return attributes
}

func (c *cells) text(i int) string {
	if c.column[i] < 0 {
		return ""
	}
	return c.row[c.column[i]]
}

func (c *cells) number(i int) float64 {
	s := c.text(i)
	if s == "" {
		return 0
	}
	x, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(x) || math.IsInf(x, 0) {
		c.fail(i, "want a number or nothing")
	}
	return x
}

func (c *cells) fail(i int, rule string) {
	if c.err == nil {
		c.err = fmt.Errorf("%s %q: %s", trackColumns[i], c.text(i), rule)
	}
}
