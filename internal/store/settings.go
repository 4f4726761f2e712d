package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// SettingMismatchError reports that this instance is configured differently
// from the fleet.
type SettingMismatchError struct {
	Name, Fleet, Ours, Remedy string
}

func (e *SettingMismatchError) Error() string {
	return fmt.Sprintf("%s is %s here and %s for the fleet; %s", e.Name, e.Ours, e.Fleet, e.Remedy)
}

// ExitCode returns the exit status for a bad configuration.
func (e *SettingMismatchError) ExitCode() int { return 3 }

// Setting is a value that must be the same for all instances.
type Setting struct {
	Name   string
	Value  string
	Remedy string // what to do about a difference
	// Derives says that crossings are derived by it: where a fleet pins it that
	// exists already, all of them are derived again.
	Derives bool
}

// Pin compares settings with what the fleet has pinned, and pins those that are
// not pinned yet. All differences are reported together.
func Pin(ctx context.Context, pool *pgxpool.Pool, scope Scope, member string, timeout time.Duration, settings []Setting) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	names, values := make([]string, len(settings)), make([]string, len(settings))
	derives := []string{}
	for i, s := range settings {
		names[i], values[i] = scope.Stream+"/"+scope.Group+"/"+s.Name, s.Value
		if s.Derives {
			derives = append(derives, names[i])
		}
	}
	if _, err := pool.Exec(ctx, `
with pinned as (
  insert into processor.settings (name, value, set_by)
  select s.name, s.value, $3
  from unnest($1::text[], $2::text[]) as s (name, value)
  on conflict (name) do nothing
  returning name
), before as (
  select value::int as shards
  from processor.settings
  where name = $5 || '/' || $6 || '/SHARDS'
)
insert into processor.requests (stream, group_name, kind, shard, reason, requested_by)
select $5, $6, 'recompute', n, 'the rules of the fleet changed', $3
from before, generate_series(0, before.shards - 1) as n
where exists (select from pinned where name = any ($4))`, names, values, member, derives, scope.Stream, scope.Group); err != nil {
		return failure("pin settings", err)
	}
	rows, err := pool.Query(ctx, `
select name, value
from processor.settings
where name = any ($1)`, names)
	if err != nil {
		return failure("read pinned settings", err)
	}
	var errs []error
	var name, value string
	if _, err := pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		i := slices.Index(names, name)
		if s := settings[i]; s.Value != value {
			errs = append(errs, &SettingMismatchError{Name: s.Name, Fleet: value, Ours: s.Value, Remedy: s.Remedy})
		}
		return nil
	}); err != nil {
		return failure("read pinned settings", err)
	}
	return errors.Join(errs...)
}
