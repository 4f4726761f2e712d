package observer

import (
	"context"
	"iter"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/store"
)

// Found is what a database had of our schema before a load test came.
type Found struct {
	Positions bool // the table, which may be the platform's
	Schema    bool
}

// shared are the tables in which a load test leaves rows that carry neither its
// stream nor its group, or whose rows say that a service has worked here.
var shared = []string{
	"public.positions", "processor.timing_records", "processor.geofences",
	"processor.shards", "processor.deferred", "processor.dead_letters", "processor.unconfirmed_letters",
}

// scoped are the tables whose rows carry stream and group.
var scoped = []string{
	"shards", "progress", "assignments", "leader", "losses", "incidents", "requests", "deferred", "dead_letters", "unconfirmed_letters",
}

// Find returns what there is of our schema, and names the tables in use: those of
// the service that hold rows.
func (o *Observer) Find(ctx context.Context) (found Found, used []string, err error) {
	err = o.pool.QueryRow(ctx, `select to_regclass('public.positions') is not null, to_regnamespace('processor') is not null`).
		Scan(&found.Positions, &found.Schema)
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
	return found, used, nil
}

// Clear removes what a load test left behind: tables that were not found before,
// and of the others the rows of its group, of its devices, and those signed with the
// name of the group. No instance of the group is at work any more.
func (o *Observer) Clear(ctx context.Context, found Found, devices iter.Seq[string]) error {
	const page = 5000
	err := pgx.BeginFunc(ctx, o.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "set local statement_timeout = 0"); err != nil {
			return err
		}
		var derived []string
		if found.Positions {
			derived = append(derived, "public.positions")
		} else if _, err := tx.Exec(ctx, "drop table if exists public.positions"); err != nil {
			return err
		}
		if found.Schema {
			derived = append(derived, "processor.timing_records", "processor.timing_changes")
			if err := o.clearSchema(ctx, tx); err != nil {
				return err
			}
		} else if _, err := tx.Exec(ctx, "drop schema if exists processor cascade"); err != nil {
			return err
		}
		var ids []string
		forget := func() error {
			for _, table := range derived {
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

// clearSchema deletes the rows of the group from a schema that was there before.
func (o *Observer) clearSchema(ctx context.Context, tx pgx.Tx) error {
	for _, table := range scoped {
		if _, err := tx.Exec(ctx, "delete from processor."+table+" where stream = $1 and group_name = $2", o.scope.Stream, o.scope.Group); err != nil {
			return err
		}
	}
	if _, err := tx.Exec(ctx, "delete from processor.settings where starts_with(name, $1)", o.scope.Stream+"/"+o.scope.Group+"/"); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "delete from processor.settings where name = $1 and value = $2", store.GroupSetting(o.scope.Stream), o.scope.Group); err != nil {
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
