package devenv

import (
	"context"
	_ "embed"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// World is a kind of servers that the service may find, other than empty ones with
// defaults.
type World string

// The worlds; worlds says what they are.
const (
	Plain       World = "plain"
	Partitioned World = "partitioned"
	Hypertable  World = "hypertable"
	Pooled      World = "pooled"
	Encrypted   World = "encrypted"
	Crowded     World = "crowded"
	Impatient   World = "impatient"
	Limited     World = "limited"
	Neighbours  World = "neighbours"

	// Turn is one of the others by turns of the seed, of those that this machine offers.
	Turn World = "turn"
)

// worldSpec is what makes a world.
type worldSpec struct {
	name     World
	about    string
	postgres []string     // added to the server's command line
	redis    []string     // likewise
	sql      []string     // commands in the empty database, before it is migrated
	database string       // made for the service, beside those of sql; "" is the one there is
	environ  []string     // of the instances
	pooled   bool         // instances reach Postgres by PgBouncer in session mode
	tls      bool         // instances reach both servers by TLS
	private  bool         // it takes servers of its own
	missing  func() error // what this machine lacks for it; nil is nothing
}

//go:embed world.sql
var partitionedSQL string

var heapOfPositions, _, _ = strings.Cut(partitionedSQL, " partition by ")

var worlds = []worldSpec{
	{name: Plain, about: "an empty database of a server with defaults"},
	{name: Partitioned, about: "positions is there, partitioned by range of device time", sql: []string{partitionedSQL}},
	{
		name: Hypertable, about: "positions is there, a hypertable of TimescaleDB with short chunks",
		postgres: []string{
			"-c", "shared_preload_libraries=timescaledb", "-c", "timescaledb.telemetry_level=off",
			"-c", "timescaledb.max_background_workers=0", // they would be in a template that is copied
		},
		sql: []string{
			heapOfPositions, "create extension if not exists timescaledb",
			"select create_hypertable('public.positions', 'ts', chunk_time_interval => interval '20 seconds', create_default_indexes => false)",
		},
		private: true, missing: findTimescale,
	},
	{name: Pooled, about: "PgBouncer in session mode before Postgres", pooled: true, private: true, missing: func() error { _, err := FindPgBouncer(); return err }},
	{name: Encrypted, about: "both servers are reached by TLS, with certificates of a CA of their own", tls: true, private: true},
	{
		name: Crowded, about: "a server of 30 connections, for three instances and everybody else",
		private: true, postgres: []string{"-c", "max_connections=30"}, environ: []string{"WORKERS=2", "POSTGRES_MAX_CONNS=7"},
	},
	{
		name: Impatient, about: "a role with time limits on statements, locks and idle transactions", private: true,
		sql: []string{
			"alter role current_user set statement_timeout = '3s'", "alter role current_user set lock_timeout = '1s'",
			"alter role current_user set idle_in_transaction_session_timeout = '3s'",
		},
	},
	{name: Limited, about: "a Redis with maxmemory", private: true, redis: []string{"--maxmemory", "128mb"}},
	{
		name: Neighbours, about: "several databases on the server, two of which have a processor's schema of their own",
		sql: []string{
			"create database neighbour", "create schema processor", "create table processor.settings (name text primary key, value text not null)",
			heapOfPositions,
		},
		database: "telemetry",
	},
}

func (w World) spec() worldSpec {
	i := slices.IndexFunc(worlds, func(s worldSpec) bool { return s.name == w })
	return worlds[max(i, 0)]
}

// Worlds returns all worlds.
func Worlds() []World {
	names := make([]World, len(worlds))
	for i := range worlds {
		names[i] = worlds[i].name
	}
	return names
}

// Heaps returns the worlds that differ in what positions is made of: all that matters to
// a statement.
func Heaps() []World { return []World{Plain, Partitioned, Hypertable} }

// ParseWorld returns the world of that name; of the empty one, Plain.
func ParseWorld(name string) (World, error) {
	if name == "" {
		return Plain, nil
	}
	all := append(Worlds(), Turn)
	if !slices.Contains(all, World(name)) {
		var names []string
		for _, w := range all {
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

// About says what the world is.
func (w World) About() string { return w.spec().about }

// Missing returns what this machine lacks for the world, as a MissingError.
func (w World) Missing() error {
	if s := w.spec(); s.missing != nil {
		return s.missing()
	}
	return nil
}

// By returns the world itself, or of Turn the one whose turn it is.
func (w World) By(seed uint64) World {
	if w != Turn {
		return w
	}
	var offered []World
	for _, s := range worlds {
		if s.name.Missing() == nil {
			offered = append(offered, s.name)
		}
	}
	return offered[seed%uint64(len(offered))]
}

// Private reports whether the world needs servers of its own: others differ in a
// database only.
func (w World) Private() bool { return w.spec().private }

// Prepare turns an empty database into one of the world, before it is migrated, and
// returns the one for the service.
func (w World) Prepare(ctx context.Context, server string) (string, error) {
	s := w.spec()
	if len(s.sql) == 0 {
		return server, nil
	}
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return "", fmt.Errorf("prepare the world %s: %w", w, err)
	}
	defer func() { _ = conn.Close(ctx) }()
	commands := s.sql
	if s.database != "" {
		commands = append(slices.Clip(commands), "create database "+s.database)
	}
	for _, sql := range commands {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return "", fmt.Errorf("prepare the world %s: %w", w, err)
		}
	}
	if s.database == "" {
		return server, nil
	}
	u, err := url.Parse(server)
	if err != nil {
		return "", fmt.Errorf("parse server URL: %w", withoutURL(err))
	}
	u.Path = "/" + s.database
	return u.String(), nil
}
