package observer

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"

	"github.com/jackc/pgx/v5/pgxpool"
)

// TimingStream keeps a copy of timing_records by reading TIMING_STREAM, as the part on it
// of docs/reference/timing-feed.md says, from which alone it was written. It is not for
// concurrent use.
type TimingStream struct {
	pool    *pgxpool.Pool
	entries Entries
	last    string // entry read last
	rows    map[int64]copied
	numbers map[string]int64
	starts  int
	read    int
}

// Entries returns some entries of a stream with their IDs: from an ID on, itself included
// ("-" is the first one), or the newest one if from is "+".
type Entries func(ctx context.Context, from string, most int64) (ids []string, fields []map[string]any, err error)

// NewTimingStream returns a reader that has read nothing yet.
func NewTimingStream(pool *pgxpool.Pool, entries Entries) *TimingStream {
	return &TimingStream{pool: pool, entries: entries}
}

// Starts returns how often the copy was begun anew.
func (s *TimingStream) Starts() int { return s.starts }

// Changes returns how many changes were taken in.
func (s *TimingStream) Changes() int { return s.read }

// Finish takes in all entries there are, where nobody writes any more, and tells how the
// copy differs from timing_records.
func (s *TimingStream) Finish(ctx context.Context) error {
	if err := s.Read(ctx); err != nil {
		return err
	}
	return same(ctx, s.pool, s.rows)
}

// Read takes in all entries there are.
func (s *TimingStream) Read(ctx context.Context) error {
	for {
		if s.rows == nil {
			if err := s.start(ctx); err != nil {
				return wrapped("begin the copy", err)
			}
		}
		ids, fields, err := s.entries(ctx, s.last, feedRows)
		if err != nil {
			return wrapped("read the stream of changes", err)
		}
		if s.last != none && (len(ids) == 0 || ids[0] != s.last) {
			s.rows = nil // others may be gone, too
			continue
		}
		for i, id := range ids {
			if id == s.last {
				continue
			}
			if err := s.take(fields[i]); err != nil {
				return wrapped("read entry "+id, err)
			}
			if s.rows == nil {
				break
			}
			s.last = id
		}
		if s.rows != nil && len(ids) < feedRows {
			return nil
		}
	}
}

// none is the position before all entries.
const none = "-"

func (s *TimingStream) start(ctx context.Context) error {
	ids, _, err := s.entries(ctx, "+", 1)
	if err != nil {
		return err
	}
	s.last = none
	if len(ids) > 0 {
		s.last = ids[0]
	}
	_, s.rows, err = snapshot(ctx, s.pool)
	s.numbers = make(map[string]int64)
	s.starts++
	return err
}

func rowID(row string) (int64, error) {
	var r struct{ ID int64 }
	err := json.Unmarshal([]byte(row), &r)
	return r.ID, err
}

// take applies one entry; the copy is gone if it has to be begun anew.
func (s *TimingStream) take(entry map[string]any) error {
	text := func(field string) string { v, _ := entry[field].(string); return v }
	device, change := text("device_id"), text("change")
	if change == "restart" {
		s.rows = nil
		return nil
	}
	number, err := strconv.ParseInt(text("number"), 10, 64)
	if err != nil {
		return err
	}
	if last, seen := s.numbers[device]; s.last == none || seen && number != last+1 && number != 0 {
		s.rows = nil
		return nil
	}
	s.numbers[device] = number
	s.read++
	row := text("crossing")
	if change == "withdrawn" {
		row = text("old")
	}
	var id int64
	if change != "erased" {
		if id, err = rowID(row); err != nil {
			return err
		}
	}
	switch change {
	case "inserted", "revised":
		s.rows[id] = copied{device, row}
	case "withdrawn":
		delete(s.rows, id)
	case "erased":
		maps.DeleteFunc(s.rows, func(_ int64, c copied) bool { return c.device == device })
	default:
		return fmt.Errorf("change %q is unknown", change)
	}
	return nil
}
