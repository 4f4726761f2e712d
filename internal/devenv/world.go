package devenv

import (
	"context"
	_ "embed"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// World is a kind of database that the service may find, other than an empty
// one of a server with defaults.
type World string

const (
	// Plain is an empty database.
	Plain World = "plain"
	// Partitioned has positions already, partitioned by range of device time.
	Partitioned World = "partitioned"
	// Hypertable has positions already, as a hypertable of TimescaleDB with
	// short chunks. It needs the extension on the server, preloaded.
	Hypertable World = "hypertable"
)

// Worlds returns all worlds.
func Worlds() []World { return []World{Plain, Partitioned, Hypertable} }

// ParseWorld returns the world of that name; of the empty one, Plain.
func ParseWorld(name string) (World, error) {
	if name == "" {
		return Plain, nil
	}
	if !slices.Contains(Worlds(), World(name)) {
		var names []string
		for _, w := range Worlds() {
			names = append(names, string(w))
		}
		return "", fmt.Errorf("world %q: want one of %s", name, strings.Join(names, ", "))
	}
	return World(name), nil
}

// Set parses the value of a flag.
func (w *World) Set(name string) (err error) {
	*w, err = ParseWorld(name)
	return err
}

func (w *World) String() string { return string(*w) }

// Type returns what the value of the flag is called.
func (w *World) Type() string { return "world" }

// PostgresArgs returns what a server needs for the world, for Options.
func (w World) PostgresArgs() []string {
	if w != Hypertable {
		return nil
	}
	return []string{
		"-c", "shared_preload_libraries=timescaledb", "-c", "timescaledb.telemetry_level=off",
		"-c", "timescaledb.max_background_workers=0", // they would be in a template that is copied
	}
}

//go:embed world.sql
var partitionedSQL string

// hypertableSQL turns the same table into one of TimescaleDB.
const hypertableSQL = `
create extension if not exists timescaledb;
select create_hypertable('public.positions', 'ts', chunk_time_interval => interval '20 seconds', create_default_indexes => false)`

// Prepare turns an empty database into one of the world, before it is migrated.
func (w World) Prepare(ctx context.Context, url string) error {
	if w != Partitioned && w != Hypertable {
		return nil
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("prepare the world %s: %w", w, err)
	}
	defer func() { _ = conn.Close(ctx) }()
	sql := partitionedSQL
	if w == Hypertable {
		table, _, _ := strings.Cut(sql, " partition by ")
		sql = table + ";" + hypertableSQL
	}
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("prepare the world %s: %w", w, err)
	}
	return nil
}
