package store

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// HighWatermark returns what is known to have been in the stream.
func (l *Ledger) HighWatermark(ctx context.Context) (protocol.HighWatermark, error) {
	const op = "read what was seen of the stream"
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	var seen protocol.HighWatermark
	var newest, gone string
	var marks []string
	err := l.pool.QueryRow(ctx, `
select coalesce(l.high_watermark_id, '0-0'), coalesce(l.accounted_loss_id, '0-0'),
  array(
    select p.applied_id
    from processor.progress p
    where p.stream = l.stream
      and p.group_name = l.group_name),
  exists (
    select
    from processor.losses x
    where x.stream = l.stream
      and x.group_name = l.group_name
      and x.cause = 'flush'
      and x.detected_at >= l.observed_at)
from processor.leader l
where l.stream = $1
  and l.group_name = $2`, l.scope.Stream, l.scope.Group).Scan(&newest, &gone, &marks, &seen.Flushed)
	if err != nil {
		return seen, failure(op, err)
	}
	if seen.Newest, err = telemetry.ParseEntryID(newest); err != nil {
		return seen, failure(op, err)
	}
	if seen.Gone, err = telemetry.ParseEntryID(gone); err != nil {
		return seen, failure(op, err)
	}
	for _, text := range marks {
		// The applied ID is a hint; an unreadable one counts as missing.
		if id, err := telemetry.ParseEntryID(text); err == nil {
			seen.Marks = append(seen.Marks, id)
		}
	}
	return seen, nil
}

// Observe records the newest entry of the stream, and up to where losses are
// recorded. A leader of an earlier term changes nothing.
func (l *Ledger) Observe(ctx context.Context, term int64, newest, gone telemetry.EntryID) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	_, err := l.pool.Exec(ctx, `
update processor.leader
set high_watermark_id = @newest,
  accounted_loss_id = @gone,
  observed_at = now()
where stream = @stream
  and group_name = @group_name
  and term = @term`, pgx.NamedArgs{
		"newest": knownID(newest), "gone": knownID(gone), "stream": l.scope.Stream, "group_name": l.scope.Group, "term": term,
	})
	return failure("record the high-water mark", err)
}

// RaiseHighWatermark notes that an entry was in the stream. It changes nothing
// when a newer one is known.
func (l *Ledger) RaiseHighWatermark(ctx context.Context, id telemetry.EntryID) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	_, err := l.pool.Exec(ctx, `
update processor.leader
set high_watermark_id = $3::text
where stream = $1
  and group_name = $2
  and (high_watermark_id is null
    or (split_part(high_watermark_id, '-', 1)::numeric, split_part(high_watermark_id, '-', 2)::numeric)
      < (split_part($3::text, '-', 1)::numeric, split_part($3::text, '-', 2)::numeric))`, l.scope.Stream, l.scope.Group, id.String())
	return failure("raise the high-water mark", err)
}
