package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/protocol"
)

// TimingFeed reads the changes of crossings in the order of the feed.
type TimingFeed struct {
	pool    *pgxpool.Pool
	timeout time.Duration
}

// NewTimingFeed returns a reader of the feed.
func NewTimingFeed(pool *pgxpool.Pool, timeout time.Duration) *TimingFeed {
	return &TimingFeed{pool: pool, timeout: timeout}
}

// Begin returns the position behind all changes that a copy of timing_records has which
// is made from now on.
func (f *TimingFeed) Begin(ctx context.Context) (p protocol.TimingPosition, err error) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	err = f.pool.QueryRow(ctx, "select pg_snapshot_xmin(pg_current_snapshot())::text::bigint, now()").Scan(&p.Tx, &p.At)
	return p, failure("look for the end of the feed", err)
}

// Continues reports whether no change behind a position is missing: retention has removed
// none there, it is of this server, and its row is there, or it is that of no row. The row alone
// does not say so, since the newest one of its device stays, and after a restore from a
// dump those of another server are there for a while.
func (f *TimingFeed) Continues(ctx context.Context, p protocol.TimingPosition) (ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	err = f.pool.QueryRow(ctx, `
select not exists (select from processor.timing_removed where (tx, id) > ($1, $2))
  and $1 <= pg_snapshot_xmax(pg_current_snapshot())::text::bigint
  and ($2 = 0 or exists (select from processor.timing_changes where tx = $1 and id = $2 and changed_at = $3))`, p.Tx, p.ID, p.At).Scan(&ok)
	return ok, failure("look for the position in the feed", err)
}

// After returns the changes behind a position, at most so many.
func (f *TimingFeed) After(ctx context.Context, p protocol.TimingPosition, most int) ([]protocol.TimingChange, error) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	rows, err := f.pool.Query(ctx, `
select tx, id, changed_at, device_id, number, change, coalesce(crossing::text, ''), coalesce(old::text, '')
from processor.timing_feed
where (tx, id) > ($1, $2)
order by tx, id
limit $3`, p.Tx, p.ID, most)
	if err != nil {
		return nil, failure("read the feed", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c protocol.TimingChange, err error) {
		err = row.Scan(&c.Tx, &c.ID, &c.At, &c.Device, &c.Number, &c.Change, &c.Crossing, &c.Old)
		return c, err
	})
	return list, failure("read the feed", err)
}

// Held returns since when the oldest change that is committed waits for a transaction
// that still runs, 0 if none waits.
func (f *TimingFeed) Held(ctx context.Context) (age time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	err = f.pool.QueryRow(ctx, `
select greatest(coalesce(now() - min(changed_at), interval '0'), interval '0')
from processor.timing_changes
where tx >= pg_snapshot_xmin(pg_current_snapshot())::text::bigint`).Scan(&age)
	return age, failure("look for changes that the feed holds back", err)
}
