package fleet

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Tracks are recorded fixes of any number of devices, in the order of their
// files.
type Tracks struct {
	fixes []telemetry.Message
}

// Len is the number of fixes.
func (t *Tracks) Len() int { return len(t.fixes) }

// ReadTracks reads track files one after the other: CSV or GPX by the name,
// either with .gz behind it. A device that occurs in several files goes on in
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
	defer f.Close()
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
		return t.AddCSV(r)
	default:
		return errors.New("want a name that ends in .csv or .gpx, with or without .gz")
	}
}

// The columns of a track file, in any order; others are passed over.
var trackColumns = [...]string{
	"device_id", "ts", "latitude", "longitude", "altitude", "angle", "speed_kmh", "satellites",
}

// AddCSV adds the rows of a CSV file with a header line that names the columns
// device_id, ts, latitude, longitude, altitude, angle, speed_kmh and
// satellites. An empty cell is 0; the first four have to be there. Records get
// codec 8, priority 0 and no attributes.
func (t *Tracks) AddCSV(r io.Reader) error {
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
		if column[i] < 0 && i < 4 {
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
		m := c.message(devices)
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
func (c *cells) message(devices map[string]string) telemetry.Message {
	id, ok := devices[c.text(0)]
	if !ok {
		id = strings.Clone(c.text(0))
		devices[id] = id
	}
	m := telemetry.Message{DeviceID: id, Codec: "8"}
	if at, err := time.Parse(time.RFC3339Nano, c.text(1)); err != nil {
		c.fail(1, "want a time like 2026-01-02T03:04:05.678Z")
	} else {
		// The wire has milliseconds.
		m.Time = at.UTC().Truncate(time.Millisecond)
	}
	for i, dst := range []*float64{&m.Latitude, &m.Longitude, &m.Altitude, &m.Angle, &m.Speed} {
		*dst = c.number(i + 2)
	}
	m.Satellites = int(c.number(7))
	return m
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
	if err != nil {
		c.fail(i, "want a number or nothing")
	}
	return x
}

func (c *cells) fail(i int, rule string) {
	if c.err == nil {
		c.err = fmt.Errorf("%s %q: %s", trackColumns[i], c.text(i), rule)
	}
}
