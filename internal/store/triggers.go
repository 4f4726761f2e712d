package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// insertTriggersSQL finds the triggers of a platform that can keep a row out of
// positions. TimescaleDB's own sees no row of ours.
const insertTriggersSQL = `
select coalesce(string_agg(tgname, ', ' order by tgname), '')
from pg_trigger
where tgrelid = to_regclass('public.positions') and not tgisinternal and tgenabled in ('O', 'A')
  and tgtype & 7 = 7 /* row, before, insert */ and tgname <> 'ts_insert_blocker'`

// triggersEvery is how often a writer looks for them: they may be created while it writes.
const triggersEvery = 5 * time.Second

// insertTriggers are their names, "" if there is none and no row has to be counted.
func (w *Writer) insertTriggers(ctx context.Context, conn *pgx.Conn) (string, error) {
	return w.triggers.get(ctx, triggersEvery, func() (names string, err error) {
		err = conn.QueryRow(ctx, insertTriggersSQL).Scan(&names)
		return names, err
	})
}
