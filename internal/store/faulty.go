package store

import (
	"context"
	"errors"
	"fmt"
	"time"

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
  from public.positions
  where device_id = $1
    and device_id between $1 and $1
    and ts between $2 and $3
    and faulty <> $4`
	args := []any{m.Device, m.From, m.To, out.Faulty}
	err = pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, "select count(*), min(ts), max(ts) from (select ts"+which+" order by ts limit $5) p", append(args, MaxMarked+1)...).
			Scan(&out.Positions, &out.First, &out.Last); err != nil {
			return err
		}
		if out.Positions > MaxMarked {
			return ErrMarkTooMany
		}
		if out.Positions == 0 {
			return nil
		}
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
		tag, err := tx.Exec(ctx, `
update public.positions
set faulty = $4
where device_id = $1
  and device_id between $1 and $1
  and ts between $2 and $3
  and faulty <> $4`, m.Device, out.First, out.Last, out.Faulty)
		if err != nil {
			return err
		}
		if out.Positions = tag.RowsAffected(); out.Positions == 0 {
			return nil
		}
		action := "faulty"
		if m.TakeBack {
			action = "faulty taken back"
		}
		request, err = d.request(ctx, tx, protocol.RequestRecompute, action, m.Device, out.First, out.Last, m.Reason, out.Positions)
		return err
	})
	if refused, _ := errors.AsType[*pgconn.PgError](err); refused != nil && refused.Code == "42501" {
		err = ErrMarkRights
	}
	if errors.Is(err, ErrMarkRights) || errors.Is(err, ErrMarkTooMany) {
		return out, 0, err
	}
	return out, request, failure("flag positions of a device", err)
}
