package store

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/telemetry"
)

// trialReader reads the eligible positions of a window in slices of device time. The
// server does not sort them: it would sort millions on disk, or look for each by itself.
// Two sessions read at once, since the server takes longer than who compares.
type trialReader struct {
	pool     *pgxpool.Pool
	snapshot string
	cuts     cuts
	window   TrialWindow
	rules    telemetry.Eligibility

	rows, most int   // of a slice
	length     int64 // of the next one
}

const (
	trialReaders  = 2
	trialRows     = 200_000    // a slice should have; with four times as many it is read in parts
	trialShortest = 60_000_000 // the first slice, in microseconds
)

// trialSlice is what was read of a slice, by device and then by time.
type trialSlice struct {
	from, to int64
	rows     []trialRow
	numbers  map[string]int32
	names    []string // of devices
	devices  []int32  // where the rows of each begin
	tooMany  bool     // and rows is nothing
}

type trialRow struct {
	device int32
	fix    geofence.Fix
}

// of returns the rows of a device.
func (s *trialSlice) of(device int) []trialRow {
	end := len(s.rows)
	if device+1 < len(s.devices) {
		end = int(s.devices[device+1])
	}
	return s.rows[s.devices[device]:end]
}

// row returns where the fix of a device at a device time is, or the next one; how many
// rows there are, if there is none.
func (s *trialSlice) row(device string, us int64) (row int, at bool) {
	if n, known := s.numbers[device]; known {
		of := s.of(int(n))
		if i, at := slices.BinarySearchFunc(of, us, func(r trialRow, us int64) int { return cmp.Compare(r.fix.TimeUS, us) }); i < len(of) {
			return int(s.devices[n]) + i, at
		}
	}
	return len(s.rows), false
}

func newTrialReader(pool *pgxpool.Pool, snapshot string, c cuts, w TrialWindow, rules telemetry.Eligibility) *trialReader {
	rows := cmp.Or(w.rows, trialRows)
	return &trialReader{pool: pool, snapshot: snapshot, cuts: c, window: w, rules: rules, rows: rows, most: 4 * rows, length: trialShortest}
}

// each calls do for all slices in order. What it is given is valid until it returns.
func (r *trialReader) each(ctx context.Context, do func(*trialSlice) error) error {
	ctx, cancel := context.WithCancel(ctx)
	type reading struct {
		slice *trialSlice
		err   error
	}
	var under []chan reading // way
	defer func() {
		cancel()
		for _, c := range under {
			<-c
		}
	}()
	since, until := r.window.Since.UnixMicro(), r.window.Until.UnixMicro()
	empty := false
	for _, s := range r.cuts.spans(since, until-1) {
		next, end := max(since, s.from), min(until, s.to)
		for next < end || len(under) > 0 {
			for len(under) < trialReaders && next < end {
				if empty {
					var err error
					if next, err = r.skip(ctx, next, end); err != nil {
						return err
					}
					empty = false
					continue
				}
				from, to := next, min(end, next+r.length)
				next = to
				c := make(chan reading, 1)
				under = append(under, c)
				go func() {
					s, err := r.read(ctx, from, to)
					c <- reading{s, err}
				}()
			}
			if len(under) == 0 {
				break
			}
			got := <-under[0]
			under = under[1:]
			if got.err != nil {
				return got.err
			}
			r.adapt(got.slice)
			empty = len(got.slice.rows) == 0 && !got.slice.tooMany
			if err := r.whole(ctx, got.slice, do); err != nil {
				return err
			}
		}
	}
	return nil
}

// adapt makes slices as long as takes so many rows, by and by.
func (r *trialReader) adapt(s *trialSlice) {
	length, rows := s.to-s.from, len(s.rows)
	if s.tooMany {
		rows = r.most
	}
	r.length = max(1, int64(float64(length)*min(4, float64(r.rows)/float64(max(1, rows)))))
}

// whole calls do for a slice, or for the parts of one that has too many rows.
func (r *trialReader) whole(ctx context.Context, s *trialSlice, do func(*trialSlice) error) error {
	if !s.tooMany {
		return do(s)
	}
	middle := s.from + (s.to-s.from)/2
	for _, part := range [][2]int64{{s.from, middle}, {middle, s.to}} {
		s, err := r.read(ctx, part[0], part[1])
		if err != nil {
			return err
		}
		if err := r.whole(ctx, s, do); err != nil {
			return err
		}
	}
	return nil
}

// skip returns the first device time of a position, or end.
func (r *trialReader) skip(ctx context.Context, from, end int64) (first int64, err error) {
	first = end
	err = seeing(ctx, r.pool, r.snapshot, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `
select (extract(epoch from ts) * 1000000)::bigint
from public.positions
where ts >= $1
  and ts < $2
  and ($3 = '' or device_id = $3)
order by ts
limit 1`, pgx.QueryExecModeCacheDescribe, timeOf(from), timeOf(end), r.window.Device)
		if err == nil {
			_, err = pgx.ForEachRow(rows, []any{&first}, func() error { return nil })
		}
		return err
	})
	return first, err
}

// read reads one slice.
func (r *trialReader) read(ctx context.Context, from, to int64) (s *trialSlice, err error) {
	s = &trialSlice{from: from, to: to, numbers: make(map[string]int32)}
	most := math.MaxInt32
	if to-from > 1 {
		most = r.most
	}
	args := []any{pgx.QueryExecModeCacheDescribe, pgx.QueryResultFormats{pgx.BinaryFormatCode}, limitsOf(r.rules), timeOf(from), timeOf(to), most}
	of := ""
	if r.window.Device != "" {
		of = "\n  and device_id = $5"
		args = append(args, r.window.Device)
	}
	var rows []trialRow
	err = seeing(ctx, r.pool, r.snapshot, func(tx pgx.Tx) error {
		// Two sessions are enough.
		if _, err := tx.Exec(ctx, "set local max_parallel_workers_per_gather = 0; set local enable_indexscan = off; set local jit = off"); err != nil {
			return err
		}
		found, err := tx.Query(ctx, `
select device_id, ts, latitude, longitude, speed
from public.positions
where ts >= $2
  and ts < $3
  and `+eligible+of+`
limit $4`, args...)
		if err != nil {
			return err
		}
		defer found.Close()
		for found.Next() {
			raw := found.RawValues()
			device, known := s.numbers[string(raw[0])]
			if !known {
				device = int32(len(s.names))
				s.names = append(s.names, string(raw[0]))
				s.numbers[s.names[device]] = device
			}
			row := trialRow{device: device}
			if len(raw[1]) != 8 || len(raw[2]) != 8 || len(raw[3]) != 8 || len(raw[4]) != 4 {
				return fmt.Errorf("positions has columns of other types: %v", found.FieldDescriptions())
			}
			be := binary.BigEndian
			row.fix.TimeUS = int64(be.Uint64(raw[1])) + postgresEpochUS
			row.fix.Latitude, row.fix.Longitude = math.Float64frombits(be.Uint64(raw[2])), math.Float64frombits(be.Uint64(raw[3]))
			row.fix.Speed = geofence.WholeKMH(math.Float32frombits(be.Uint32(raw[4])))
			rows = append(rows, row)
		}
		return found.Err()
	})
	if len(rows) >= most {
		s.tooMany = true
		return s, err
	}
	s.sort(rows)
	return s, err
}

// sort puts the rows in order. Those of a device mostly are.
func (s *trialSlice) sort(rows []trialRow) {
	s.devices = make([]int32, len(s.names)+1)
	for i := range rows {
		s.devices[rows[i].device+1]++
	}
	for n := range s.names {
		s.devices[n+1] += s.devices[n]
	}
	s.devices = s.devices[:len(s.names)]
	s.rows = make([]trialRow, len(rows))
	at := slices.Clone(s.devices)
	for i := range rows {
		n := rows[i].device
		s.rows[at[n]] = rows[i]
		at[n]++
	}
	later := func(a, b trialRow) int { return cmp.Compare(a.fix.TimeUS, b.fix.TimeUS) }
	for n := range s.names {
		if of := s.of(n); !slices.IsSortedFunc(of, later) {
			slices.SortFunc(of, later)
		}
	}
}
