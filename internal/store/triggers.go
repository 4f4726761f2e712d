package store

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// RowTrigger is a trigger of a platform that runs before each row of positions and can
// keep its change from being made.
type RowTrigger struct {
	Name  string
	Table string // that has it, one of Tables
	// Tables is how many have one of the name: partitions, or the chunks of a hypertable,
	// which get a copy of its own each.
	Tables int
}

// The events of RowTriggers, as in pg_trigger.tgtype.
const (
	BeforeInsert = 4
	BeforeDelete = 8
)

// rowTriggersSQL climbs from the triggers of the database, which are few, to positions,
// which may have thousands of heaps. TimescaleDB's own trigger sees no row of ours.
const rowTriggersSQL = `
with recursive found as (
  select tgname, tgrelid, tgrelid as above
  from pg_trigger
  where not tgisinternal
    and tgenabled in ('O', 'A')
    and tgtype & 3 = 3 /* row, before */
    and tgtype & $1 > 0
    and tgname <> 'ts_insert_blocker'
  union
  select f.tgname, f.tgrelid, i.inhparent
  from found f
  join pg_inherits i on i.inhrelid = f.above
)
select f.tgname, (array_agg(format('%I.%I', s.nspname, c.relname) order by f.tgrelid <> f.above, c.oid))[1], count(*)
from found f
join pg_class c on c.oid = f.tgrelid
join pg_namespace s on s.oid = c.relnamespace
where f.above = to_regclass('public.positions')
group by 1
order by 1`

// RowTriggers finds such triggers of positions and of all that is below it, by name.
func RowTriggers(ctx context.Context, db asker, event int16) ([]RowTrigger, error) {
	rows, err := db.Query(ctx, rowTriggersSQL, event)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[RowTrigger])
}

// triggersEvery is how often a writer looks for them: they may be created while it writes.
const triggersEvery = 5 * time.Second

// triggers of positions, as a writer sees them.
type triggers struct {
	before   string // names of those that can keep a row out, "" if there is none and no row has to be counted
	deferred bool   // there are some that run at the end of a transaction, or constraints that are checked then
}

const deferredTriggersSQL = `
with recursive found as (
  select tgrelid as above
  from pg_trigger
  where tginitdeferred
    and tgenabled in ('O', 'A')
    and tgtype & 4 > 0 /* insert */
  union
  select i.inhparent
  from found f
  join pg_inherits i on i.inhrelid = f.above
)
select exists (select from found where above = to_regclass('public.positions'))`

func (w *Writer) insertTriggers(ctx context.Context, conn *pgx.Conn) (triggers, error) {
	return w.triggers.get(ctx, triggersEvery, func() (t triggers, err error) {
		list, err := RowTriggers(ctx, conn, BeforeInsert)
		if err != nil {
			return t, err
		}
		names := make([]string, len(list))
		for i := range list {
			names[i] = list[i].Name
		}
		t.before = strings.Join(names, ", ")
		err = conn.QueryRow(ctx, deferredTriggersSQL).Scan(&t.deferred)
		return t, err
	})
}
