package modules

import (
	"context"
	"errors"
	"strconv"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
)

// shardHash names the hash of devices; see telemetry.ShardOf.
const shardHash = "xxhash64"

// pinFleetSettings compares the settings that must be the same in the whole fleet
// with those that the fleet has pinned. The protocol comes first: a member of
// another version must not pin any other setting.
func pinFleetSettings(ctx context.Context, cfg config.Config, pool *pgxpool.Pool, scope store.Scope, m Member) error {
	const release = "only the migration of a release changes it"
	const rule = "to change it for the fleet, stop all instances, delete its row of processor.settings and start them with the new value: everything is then recomputed"
	timeout := cfg.Postgres.StatementTimeout
	err := store.Pin(ctx, pool, scope, string(m), timeout, []store.Setting{
		{Name: "PROTOCOL", Value: strconv.Itoa(protocol.Version), Remedy: "run the version of the other members, or stop them first"},
	})
	var pinned *store.SettingMismatchError
	if errors.As(err, &pinned) {
		return permanent(fault.Exitf(fault.Schema, "%w", err))
	}
	if err == nil {
		err = store.Pin(ctx, pool, scope, string(m), timeout, []store.Setting{
			{Name: "SHARDS", Value: strconv.Itoa(cfg.Coordination.Shards), Remedy: "change it with processor shards resize"},
			{Name: "HASH", Value: shardHash, Remedy: release},
			{Name: "MAX_FUTURE_SKEW", Value: cfg.Telemetry.MaxFutureSkew.String(), Remedy: release},
			{Name: "MAX_PAST", Value: cfg.Telemetry.MaxPast.String(), Remedy: rule, Derives: true},
			{Name: "MIN_SATELLITES", Value: strconv.Itoa(cfg.Telemetry.MinSatellites), Remedy: rule, Derives: true},
			{Name: "MAX_SPEED", Value: strconv.Itoa(cfg.Telemetry.MaxSpeed), Remedy: rule, Derives: true},
			{Name: "MAX_CROSSING_GAP", Value: cfg.Geofences.MaxCrossingGap.String(), Remedy: release},
		})
	}
	if errors.As(err, &pinned) {
		return permanent(fault.Exitf(fault.Config, "%w", err))
	}
	// With MIGRATE=off this is the first query of the schema.
	err = fault.FirstPostgresError(cfg.Postgres.URL, err)
	if own, ok := errors.AsType[*fault.Error](err); ok && own.Code == fault.Schema {
		return permanent(err)
	}
	return err
}
