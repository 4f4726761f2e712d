package observer

import (
	"context"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"
)

// Found is what a database had of our schema before a load test came.
type Found struct {
	Positions bool // the table, which may be the platform's
	Schema    bool
	settings  []string // their names
	at        time.Time
}

// shared are the tables in which a load test leaves rows that carry neither its
// stream nor its group, or whose rows say that a service has worked here.
var shared = []string{
	"public.positions", "processor.timing_records", "processor.geofences",
	"processor.shards", "processor.deferred", "processor.dead_letters", "processor.unconfirmed_letters",
}

// derived are the tables whose rows carry a device and no stream. Deleting timing records adds changes.
var derived = []string{"processor.timing_records", "processor.timing_changes", "processor.device_moves"}

// Find returns what there is of our schema, and names the tables in use: those of
// the service that hold rows.
func (o *Observer) Find(ctx context.Context) (found Found, used []string, err error) {
	var settings bool
	err = o.pool.QueryRow(ctx, `
select to_regclass('public.positions') is not null, to_regnamespace('processor') is not null,
  to_regclass('processor.settings') is not null, clock_timestamp()`).Scan(&found.Positions, &found.Schema, &settings, &found.at)
	if err != nil {
		return found, nil, wrapped("look for tables", err)
	}
	for _, table := range shared {
		var rows bool
		if err := o.pool.QueryRow(ctx, `select to_regclass($1) is not null`, table).Scan(&rows); err != nil {
			return found, nil, wrapped("look for tables", err)
		}
		if !rows {
			continue
		}
		if err := o.pool.QueryRow(ctx, `select exists (select from `+table+`)`).Scan(&rows); err != nil {
			return found, nil, wrapped("look into "+table, err)
		}
		if rows {
			used = append(used, table)
		}
	}
	if settings {
		err = o.pool.QueryRow(ctx, `select coalesce(array_agg(name), '{}') from processor.settings`).Scan(&found.settings)
	}
	return found, used, wrapped("look for settings", err)
}

// Clear removes what a load test left behind: tables that were not found before,
// and of the others the rows of its stream, of its devices, those signed with the
// name of the group, and settings that were not found. No instance of the group is at work any more.
func (o *Observer) Clear(ctx context.Context, found Found, devices iter.Seq[string]) error {
	const page = 5000
	err := pgx.BeginFunc(ctx, o.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "set local statement_timeout = 0"); err != nil {
			return err
		}
		var tables []string
		if found.Positions {
			tables = append(tables, "public.positions")
		} else if _, err := tx.Exec(ctx, "drop table if exists public.positions"); err != nil {
			return err
		}
		if found.Schema {
			tables = append(tables, derived...)
			if err := o.clearSchema(ctx, tx, found); err != nil {
				return err
			}
		} else if _, err := tx.Exec(ctx, "drop schema if exists processor cascade"); err != nil {
			return err
		}
		var ids []string
		forget := func() error {
			for _, table := range tables {
				if _, err := tx.Exec(ctx, "delete from "+table+" where device_id = any ($1)", ids); err != nil {
					return err
				}
			}
			ids = ids[:0]
			return nil
		}
		for id := range devices {
			if ids = append(ids, id); len(ids) == page {
				if err := forget(); err != nil {
					return err
				}
			}
		}
		return forget()
	})
	return wrapped("clear the database of a load test", err)
}

// clearSchema deletes the rows of the stream from a schema that was there before, and those that
// carry no stream and came since.
func (o *Observer) clearSchema(ctx context.Context, tx pgx.Tx, found Found) error {
	rows, err := tx.Query(ctx, `
select c.oid::regclass::text
from pg_class c
join pg_attribute a on a.attrelid = c.oid
where c.relnamespace = 'processor'::regnamespace
  and c.relkind = 'r'
  and a.attname = 'stream'`)
	if err != nil {
		return err
	}
	scoped, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, table := range scoped {
		if _, err := tx.Exec(ctx, "delete from "+table+" where stream = $1", o.scope.Stream); err != nil {
			return err
		}
	}
	if _, err := tx.Exec(ctx, "delete from processor.settings where name <> all ($1)", found.settings); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "delete from processor.timing_shown where at >= $1", found.at); err != nil {
		return err
	}
	for _, statement := range []string{
		"delete from processor.geofences where created_by = $1",
		"delete from processor.audit where who = $1",
	} {
		if _, err := tx.Exec(ctx, statement, o.scope.Group); err != nil {
			return err
		}
	}
	return nil
}
