package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trmtracking/processor/internal/protocol"
)

// Mark says which positions of a device are flagged faulty, or no more.
type Mark struct {
	Device   string
	From, To time.Time // device time of the first and the last
	TakeBack bool      // the flag
	DryRun   bool
	Reason   string
}

// Marked is what was flagged, or would be. Positions that were so before do not count.
type Marked struct {
	Device    string         `json:"device_id"`
	Faulty    bool           `json:"faulty"`
	DryRun    bool           `json:"dry_run"`
	Positions int64          `json:"positions"`
	First     *time.Time     `json:"first"`     // device times; null if there is none
	Last      *time.Time     `json:"last"`      //
	Crossings int64          `json:"crossings"` // recorded that one of them decided
	Request   *RequestStatus `json:"request"`   // the recompute; null if nothing was changed
}

// MaxMarked bounds the positions of one change: they are one transaction.
const MaxMarked = 100_000

// ErrMarkRights is returned for a role that may not change the flag.
var ErrMarkRights = errors.New("this role in Postgres may not flag positions: grant update (faulty) on public.positions to it, as deploy/security/postgres.sql does with -v operator=true")

// ErrMarkTooMany is returned for a window with more than MaxMarked positions.
var ErrMarkTooMany = fmt.Errorf("more than %d positions at once: choose a shorter window", MaxMarked)

// Mark flags positions of a device and asks for the recompute that follows, with its
// audit, in one transaction: the owner, who writes the device's positions, commits
// nothing of its shard between the recompute and loading the state from the tables again.
func (d *Devices) Mark(ctx context.Context, m Mark) (out Marked, request int64, err error) {
	out = Marked{Device: m.Device, Faulty: !m.TakeBack, DryRun: m.DryRun}
	if d.pins.Shards == 0 {
		return out, 0, errNeverStarted
	}
	if err := CheckWindow(&m.From, &m.To); err != nil {
		return out, 0, err
	}
	const which = `
where device_id = $1
  and device_id between $1 and $1
  and ts between $2 and $3
  and faulty <> $4`
	found, err := d.unmarked(ctx, m, which)
	if err != nil {
		return out, 0, failure("count positions of a device", err)
	}
	for _, p := range found {
		out.Positions += p.n
	}
	if out.Positions > MaxMarked {
		return out, 0, ErrMarkTooMany
	}
	if out.Positions == 0 {
		return out, 0, nil
	}
	out.First, out.Last = found[0].first, found[len(found)-1].last
	flag := func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `
select count(*)
from processor.timing_records t
where device_id = $1
  and later_ts >= $2
  and (later_ts <= $3 or earlier_ts between $2 and $3)`, m.Device, out.First, out.Last).Scan(&out.Crossings); err != nil {
			return err
		}
		if m.DryRun {
			return nil
		}
		out.Positions = 0
		for _, p := range found {
			tag, err := tx.Exec(ctx, "update public.positions set faulty = $4"+which, p.args(m.Device, p.first, p.last, out.Faulty)...)
			if err != nil {
				return err
			}
			out.Positions += tag.RowsAffected()
		}
		if out.Positions == 0 {
			return nil
		}
		action := "faulty"
		if m.TakeBack {
			action = "faulty taken back"
		}
		request, err = d.request(ctx, tx, protocol.RequestRecompute, action, m.Device, out.First, out.Last, m.Reason, out.Positions)
		return err
	}
	// The owner's late records lock rows of the device in their own order.
	_, err = backoff.Retry(ctx, func() (struct{}, error) {
		err := pgx.BeginFunc(ctx, d.pool, flag)
		if e, _ := errors.AsType[*pgconn.PgError](err); err != nil && (e == nil || e.Code != "40P01" && e.Code != "40001") {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithMaxTries(markTries))
	if refused, _ := errors.AsType[*pgconn.PgError](err); refused != nil && refused.Code == "42501" {
		return out, 0, ErrMarkRights
	}
	return out, request, failure("flag positions of a device", err)
}

// markTries is how often a mark is tried that others' locks undo.
const markTries = 5

// unmarked is the positions in a few heaps whose flag a mark changes.
type unmarked struct {
	cuts
	n           int64
	first, last *time.Time // device times
}

// unmarked counts the positions whose flag a mark changes, some heaps at a time and no
// further than a little above MaxMarked; heaps without any are left out.
func (d *Devices) unmarked(ctx context.Context, m Mark, which string) (found []unmarked, err error) {
	c, err := d.heaps.now(ctx)
	if err != nil {
		return nil, err
	}
	from, to := m.From.UnixMicro(), m.To.UnixMicro()
	var sum int64
	for _, at := range c.spans(from, to) {
		p := unmarked{cuts: c}
		if err := d.pool.QueryRow(ctx, "select count(*), min(ts), max(ts) from (select ts from public.positions"+which+" order by ts limit $5) p",
			c.args(m.Device, micros(max(from, at.from)), micros(min(to, at.to-1)), !m.TakeBack, MaxMarked+1)...).
			Scan(&p.n, &p.first, &p.last); err != nil {
			return nil, err
		}
		if p.n > 0 {
			found = append(found, p)
		}
		if sum += p.n; sum > MaxMarked {
			break
		}
	}
	return found, nil
}
