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
	found, err := d.unmarked(ctx, m)
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
	first, last := found[0].first.Time.UTC(), found[len(found)-1].last.Time.UTC()
	out.First, out.Last = &first, &last
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
			n, err := d.flag(ctx, tx, p, m.Device, out.Faulty)
			if err != nil {
				return err
			}
			out.Positions += n
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

const toMark = `
where device_id = $1
  and device_id between $1 and $1
  and ts between $2 and $3
  and faulty <> $4`

// flag changes the flag of the positions of a part. A role that may update the flag of
// positions only, and not of its chunks, changes it by way of all of them.
func (d *Devices) flag(ctx context.Context, tx pgx.Tx, p part, device string, faulty bool) (n int64, err error) {
	change := func(tx pgx.Tx) (err error) {
		n, err = p.change(ctx, tx, "update %s set faulty = $4"+toMark, device, p.first, p.last, faulty)
		return err
	}
	if p.heap == allHeaps {
		err = change(tx)
		return n, err
	}
	err = pgx.BeginFunc(ctx, tx, change)
	if refused, _ := errors.AsType[*pgconn.PgError](err); refused != nil && refused.Code == "42501" {
		p.heap = allHeaps
		err = change(tx)
	}
	return n, err
}

// unmarked counts the positions whose flag a mark changes, some heaps at a time and no
// further than a little above MaxMarked; heaps without any are left out.
func (d *Devices) unmarked(ctx context.Context, m Mark) (found []part, err error) {
	all, err := d.heaps.division(ctx, cutsAge)
	if err != nil {
		return nil, err
	}
	from, to := m.From.UnixMicro(), m.To.UnixMicro()
	var sum int64
	for _, at := range all.cuts.spans(from, to) {
		rows, err := d.pool.Query(ctx, partsSQL(len(all.chunks) > 0, " from public.positions"+toMark+" order by ts limit $5"),
			all.cuts.args(m.Device, micros(max(from, at.from)), micros(min(to, at.to-1)), !m.TakeBack, MaxMarked+1)...)
		if err != nil {
			return nil, err
		}
		var p part
		if _, err := pgx.ForEachRow(rows, p.columns(), func() error {
			found, sum = append(found, p), sum+p.n
			return nil
		}); err != nil {
			return nil, err
		}
		if sum > MaxMarked {
			break
		}
	}
	return found, nil
}
