package operator

import (
	"context"
	"strings"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
)

// Database is a database by its identity and address.
type Database struct {
	ID      string `json:"id"`
	Address string `json:"address"`
}

// String returns both.
func (d Database) String() string {
	if d.ID == "" {
		return "(a new identity) " + d.Address
	}
	return d.ID + " " + d.Address
}

// Adopted is a change of the fleet's database.
type Adopted struct {
	From    *Database `json:"from"` // null if Redis knows of none
	To      Database  `json:"to"`
	Changed bool      `json:"changed"`
	DryRun  bool      `json:"dry_run"`
}

// Adopt has the fleet work with the database of POSTGRES_URL from now on: one that
// was restored, moved or replaced, so that Redis knows another one. It is refused
// while an instance is alive. Unless confirmed it only tells what it would do.
func (f *Fleet) Adopt(ctx context.Context, reason string, confirmed bool) (out Adopted, err error) {
	out.DryRun = !confirmed
	if confirmed && strings.TrimSpace(reason) == "" {
		return out, fault.Exitf(fault.Config, "give the reason, for the audit: nobody can tell later why the database is another")
	}
	group, pinned, err := f.both(ctx)
	if err != nil {
		return out, err
	}
	out.To = Database{pinned.Database, fault.PostgresDatabase(f.cfg.Postgres.URL)}
	if err := store.CheckGroup(ctx, f.pool, f.scope, askTimeout); err != nil {
		return out, fault.Exit(fault.Config, f.explained(err))
	}
	was, err := group.FleetDatabase(ctx)
	if err != nil {
		return out, err
	}
	if was.ID != "" {
		out.From = &Database{was.ID, was.Address}
	}
	if out.From != nil && *out.From == out.To {
		return out, nil
	}
	there, err := f.heartbeats(ctx)
	if err != nil {
		return out, fault.RedisError(f.cfg.Redis, err)
	}
	if len(there) > 0 {
		names := make([]string, len(there))
		for i, m := range there {
			names[i] = m.Name()
		}
		return out, fault.Exitf(fault.Finding, "stop every instance first, nothing was changed; still there: %s", strings.Join(names, ", "))
	}
	if !confirmed {
		return out, nil
	}
	identity := store.NewIdentity()
	if _, err := identity.Establish(ctx, f.pool, f.scope, f.by, askTimeout); err != nil {
		return out, fault.Exit(fault.Config, f.explained(err))
	}
	out.To.ID = identity.ID()
	// Noted before it is done: a change without a row would be worse than a row without a change.
	if err := f.audit().Note(ctx, f.by, "fleet adopt", f.scope.Stream, 1, map[string]any{
		"reason": reason, "group": f.scope.Group, "from": out.From, "to": out.To,
	}); err != nil {
		return out, f.explained(err)
	}
	out.Changed, err = group.Adopt(ctx, was, stream.NewFleetDatabase(out.To.ID, out.To.Address))
	if err == nil && !out.Changed {
		err = fault.Exitf(fault.Finding, "another instance or person changed the fleet's database meanwhile, nothing was changed; run it again")
	}
	return out, err
}
