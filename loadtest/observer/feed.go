package observer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The statements of docs/reference/timing-feed.md, from which alone this reader was
// written; a test compares them.
const (
	feedZone  = `set local timezone = 'UTC'`
	feedStart = `select pg_snapshot_xmin(pg_current_snapshot())::text::bigint`
	feedCopy  = `select id, device_id, to_jsonb(t)::text from processor.timing_records t`
	feedPage  = `select tx, id, changed_at, device_id, number, change,
  coalesce(crossing ->> 'id', old ->> 'id')::bigint, crossing::text
from processor.timing_feed
where (tx, id) >= ($1, $2)
order by tx, id
limit $3`
)

// feedLast is feedPage where nobody writes any more: what other databases of the
// server do holds nothing back.
const feedLast = `select tx, id, changed_at, device_id, number, change,
  coalesce(crossing ->> 'id', old ->> 'id')::bigint, crossing::text
from processor.timing_changes
where (tx, id) >= ($1, $2)
order by tx, id
limit $3`

const feedRows = 500

// Feed keeps a copy of timing_records by reading processor.timing_feed. It is not for
// concurrent use.
type Feed struct {
	pool    *pgxpool.Pool
	tx, id  int64
	at      time.Time // changed_at of the row at the position
	rows    map[int64]copied
	numbers map[string]int64 // of the last change of each device
	starts  int
	read    int
}

// copied is a row of the copy.
type copied struct{ device, text string }

// NewFeed returns a reader that has read nothing yet.
func NewFeed(pool *pgxpool.Pool) *Feed { return &Feed{pool: pool} }

// Starts returns how often the copy was begun anew.
func (f *Feed) Starts() int { return f.starts }

// Changes returns how many changes were read.
func (f *Feed) Changes() int { return f.read }

// Read takes in all changes that are in the feed.
func (f *Feed) Read(ctx context.Context) error {
	return wrapped("read the feed", f.catchUp(ctx, feedPage))
}

// Finish takes in all changes there are, where nobody writes any more, and tells how
// the copy differs from timing_records.
func (f *Feed) Finish(ctx context.Context) error {
	if err := f.catchUp(ctx, feedLast); err != nil {
		return wrapped("read the feed", err)
	}
	return same(ctx, f.pool, f.rows)
}

// same tells how a copy of timing_records differs from it.
func same(ctx context.Context, pool *pgxpool.Pool, rows map[int64]copied) error {
	_, there, err := snapshot(ctx, pool)
	if err != nil {
		return wrapped("read timing records", err)
	}
	for id, row := range there {
		if rows[id] != row {
			return fmt.Errorf("the copy made from the feed has %q, timing_records %q", rows[id].text, row.text)
		}
	}
	if n := len(rows) - len(there); n > 0 {
		maps.DeleteFunc(rows, func(id int64, _ copied) bool { _, ok := there[id]; return ok })
		return fmt.Errorf("the copy made from the feed has %d rows more than timing_records, such as %v", n, slices.Collect(maps.Values(rows))[0])
	}
	return nil
}

func (f *Feed) catchUp(ctx context.Context, sql string) error {
	for {
		if f.rows == nil {
			tx, rows, err := snapshot(ctx, f.pool)
			if err != nil {
				return err
			}
			f.tx, f.id, f.at, f.rows, f.numbers = tx, 0, time.Time{}, rows, make(map[string]int64)
			f.starts++
		}
		n, err := f.page(ctx, sql)
		if err != nil || f.rows != nil && n < feedRows {
			return err
		}
	}
}

// snapshot returns timing_records, and where the feed goes on from there.
func snapshot(ctx context.Context, pool *pgxpool.Pool) (from int64, rows map[int64]copied, err error) {
	rows = make(map[int64]copied)
	opts := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err = pgx.BeginTxFunc(ctx, pool, opts, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, feedZone); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, feedStart).Scan(&from); err != nil {
			return err
		}
		found, err := tx.Query(ctx, feedCopy)
		if err != nil {
			return err
		}
		var id int64
		var row copied
		_, err = pgx.ForEachRow(found, []any{&id, &row.device, &row.text}, func() error {
			rows[id] = row
			return nil
		})
		return err
	})
	return from, rows, err
}

// page reads some changes, the one at the position first: if it is not there any more,
// others may be missing, too, and everything is forgotten.
func (f *Feed) page(ctx context.Context, sql string) (n int, err error) {
	found, err := f.pool.Query(ctx, sql, f.tx, f.id, feedRows)
	if err != nil {
		return 0, err
	}
	var tx, id, number, row int64
	var at time.Time
	var device, change string
	var rowID *int64
	var text *string
	known := f.id == 0
	_, err = pgx.ForEachRow(found, []any{&tx, &id, &at, &device, &number, &change, &rowID, &text}, func() error {
		n++
		if !known {
			if known = tx == f.tx && id == f.id && at.Equal(f.at); !known {
				return errEnough
			}
			return nil
		}
		if last, seen := f.numbers[device]; seen && number != last+1 && number != 0 {
			return fmt.Errorf("change %d of device %s follows change %d", number, device, last)
		}
		if row = 0; rowID != nil {
			row = *rowID
		}
		switch change {
		case "inserted", "revised":
			f.rows[row] = copied{device, *text}
		case "withdrawn":
			delete(f.rows, row)
		case "erased":
			maps.DeleteFunc(f.rows, func(_ int64, c copied) bool { return c.device == device })
		}
		f.tx, f.id, f.at, f.numbers[device] = tx, id, at, number
		f.read++
		return nil
	})
	if !known && (err == nil || errors.Is(err, errEnough)) {
		f.rows, err = nil, nil
	}
	return n, err
}
