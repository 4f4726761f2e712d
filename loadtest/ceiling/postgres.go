// Package ceiling measures what Postgres does with our rows without any code of the
// service: what it reaches is the ceiling. Every call gets the URL of a database.
package ceiling

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

const columns = `device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes`

// Exec runs one statement.
func Exec(ctx context.Context, url, sql string) (err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

// Export reads stored positions from a device time on and before another, in the
// order in which they were stored, as whole binary COPY streams of at most size rows.
func Export(ctx context.Context, url string, from, before time.Time, size int) (_ [][]byte, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	var all bytes.Buffer
	_, err = conn.PgConn().CopyTo(ctx, &all, fmt.Sprintf(
		"copy (select %s from public.positions where ts >= '%s' and ts < '%s' order by ts, device_id) to stdout (format binary)",
		columns, from.UTC().Format(time.RFC3339Nano), before.UTC().Format(time.RFC3339Nano)))
	if err != nil {
		return nil, fmt.Errorf("read stored rows: %w", err)
	}
	return splitCopy(all.Bytes(), size)
}

// splitCopy cuts a binary COPY stream into whole ones of at most size rows.
func splitCopy(all []byte, size int) ([][]byte, error) {
	const head = 19 // without extensions, which no version of Postgres writes
	if len(all) < head+2 {
		return nil, errors.New("split stored rows: the stream is too short")
	}
	var out [][]byte
	start, rows := head, 0
	cut := func(end int) {
		if rows > 0 {
			out = append(out, bytes.Join([][]byte{all[:head], all[start:end], {0xff, 0xff}}, nil))
		}
		start, rows = end, 0
	}
	for at := head; at+2 <= len(all); {
		fields := int16(binary.BigEndian.Uint16(all[at:]))
		if fields < 0 {
			cut(at)
			return out, nil
		}
		if rows == size {
			cut(at)
		}
		rows++
		at += 2
		for range fields {
			if at+4 > len(all) {
				break
			}
			at += 4 + max(0, int(int32(binary.BigEndian.Uint32(all[at:]))))
		}
	}
	return nil, errors.New("split stored rows: the stream has no end")
}

// spread has tasks done over some connections and reports how long that took.
func spread(ctx context.Context, url string, tasks, connections int, do func(context.Context, *pgx.Conn, int) error) (took time.Duration, err error) {
	conns := make([]*pgx.Conn, connections)
	for i := range conns {
		if conns[i], err = pgx.Connect(ctx, url); err != nil {
			return 0, fmt.Errorf("connect to Postgres: %w", err)
		}
		defer func() { err = errors.Join(err, conns[i].Close(context.WithoutCancel(ctx))) }()
	}
	var next atomic.Int64
	began := time.Now()
	work, ctx := errgroup.WithContext(ctx)
	for _, conn := range conns {
		work.Go(func() error {
			for {
				n := int(next.Add(1)) - 1
				if n >= tasks {
					return nil
				}
				if err := do(ctx, conn, n); err != nil {
					return err
				}
			}
		})
	}
	err = work.Wait()
	return time.Since(began), err
}

// Copy has each stream committed by a COPY of its own over some connections, and
// reports how long that took once they were open.
func Copy(ctx context.Context, url string, streams [][]byte, connections int) (time.Duration, error) {
	return spread(ctx, url, len(streams), connections, func(ctx context.Context, conn *pgx.Conn, n int) error {
		tag, err := conn.PgConn().CopyFrom(ctx, bytes.NewReader(streams[n]), "copy public.positions ("+columns+") from stdin (format binary)")
		if err == nil && tag.RowsAffected() == 0 {
			err = errors.New("nothing was copied")
		}
		return err
	})
}

// arrays are the columns of one INSERT as Postgres encodes arrays, so that nothing
// but Postgres is measured.
type arrays [12][]byte

const insertSQL = `insert into public.positions (` + columns + `)
select * from unnest($1::text[], $2::timestamptz[], $3::timestamptz[], $4::float8[], $5::float8[],
  $6::float4[], $7::float4[], $8::float4[], $9::int2[], $10::int2[], $11::text[], $12::jsonb[])
on conflict (device_id, ts) do nothing`

// Insert is Copy by INSERT of unnested arrays ON CONFLICT DO NOTHING. Reading the
// rows from where they were stored is not counted.
func Insert(ctx context.Context, url, from string, since time.Time, size, connections int) (time.Duration, int, error) {
	batches, rows, err := readArrays(ctx, from, since, size)
	if err != nil {
		return 0, 0, err
	}
	took, err := spread(ctx, url, len(batches), connections, func(ctx context.Context, conn *pgx.Conn, n int) error {
		tag, err := conn.PgConn().ExecParams(ctx, insertSQL, batches[n][:], nil, []int16{1}, nil).Close()
		if err == nil && tag.RowsAffected() != int64(size) && n < len(batches)-1 {
			// Rows that are there already would make it look fast.
			err = fmt.Errorf("%d of %d rows were inserted", tag.RowsAffected(), size)
		}
		return err
	})
	return took, rows, err
}

// readArrays has the server encode its rows as binary arrays.
func readArrays(ctx context.Context, url string, since time.Time, size int) (batches []*arrays, rows int, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, 0, fmt.Errorf("connect to Postgres: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	// Rows of one batch, in the order of the stream.
	sql := fmt.Sprintf(`
select array_agg(device_id order by n), array_agg(ts order by n), array_agg(ingested_at order by n), array_agg(latitude order by n),
  array_agg(longitude order by n), array_agg(altitude order by n), array_agg(angle order by n), array_agg(speed order by n),
  array_agg(satellites order by n), array_agg(priority order by n), array_agg(codec order by n), array_agg(attributes order by n), count(*)
from (select *, row_number() over (order by ts, device_id) as n from public.positions where ts >= '%s') as r
group by (n - 1) / %d order by min(n)`, since.UTC().Format(time.RFC3339Nano), size)
	res := conn.PgConn().ExecParams(ctx, sql, nil, nil, nil, []int16{1})
	for res.NextRow() {
		var a arrays
		values := res.Values()
		for i := range a {
			a[i] = bytes.Clone(values[i])
		}
		rows += int(binary.BigEndian.Uint64(values[12]))
		batches = append(batches, &a)
	}
	if _, err := res.Close(); err != nil {
		return nil, 0, fmt.Errorf("read stored rows: %w", err)
	}
	return batches, rows, nil
}
