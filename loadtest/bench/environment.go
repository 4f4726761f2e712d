package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/ceiling"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/testbed"
)

const (
	benchBatch = 4000 // rows a commit, as the service's own default
	benchBlock = 100  // records of a device that come newest first
	benchPipe  = 2000 // entries appended in one round trip

	dbStored   = "stored"    // what the service stored in the first place
	dbTemplate = "prefilled" // the schema with half of that
)

// run is one run of the measurements.
type run struct {
	cfg  Config
	res  *Result
	env  *devenv.Env
	made int // databases and streams so far

	inOrder     [][]string
	newestFirst [][]string
	rows        [][]byte  // the entries above as the service stored them
	second      time.Time // device time that parts them from the rows there before
}

func (b *run) open(ctx context.Context) (err error) {
	b.env, err = devenv.Start(ctx, devenv.Options{Redis: !b.cfg.Cluster, Cluster: b.cfg.Cluster, Postgres: true})
	if err != nil {
		return fmt.Errorf("start servers: %w", err)
	}
	return nil
}

// part returns one backlog of the fleet, later than the part before.
func (b *run) part(n int) (entries [][]string, devices []string, start time.Time, err error) {
	const rate = 1000
	p := fleet.Steady(b.cfg.Seed, b.cfg.Devices, rate, time.Duration(2*b.cfg.Entries/rate+2)*time.Second)
	p.Start = p.Start.Add(time.Duration(n) * 24 * time.Hour)
	p.Limit = b.cfg.Entries
	src, err := p.Source()
	if err != nil {
		return nil, nil, p.Start, err
	}
	for it, ok := src.Next(); ok; it, ok = src.Next() {
		entries, devices = append(entries, it.Fields()), append(devices, it.Message.DeviceID)
	}
	if len(entries) < b.cfg.Entries {
		return nil, nil, p.Start, fmt.Errorf("the fleet yields %d entries, not %d", len(entries), b.cfg.Entries)
	}
	return entries, devices, p.Start, nil
}

// prepare has the service store two parts, and makes the database with the first
// of them that every measurement begins with.
func (b *run) prepare(ctx context.Context) error {
	before, _, _, err := b.part(0)
	if err != nil {
		return err
	}
	var devices []string
	if b.inOrder, devices, b.second, err = b.part(1); err != nil {
		return err
	}
	b.newestFirst = newestFirst(b.inOrder, devices, benchBlock)
	b.decode()

	b.note("preparing: %s rows of %s devices that are there before, and %s entries",
		cli.Thousands(int64(len(before))), cli.Thousands(int64(b.cfg.Devices)), cli.Thousands(int64(len(b.inOrder))))
	if err := b.create(ctx, dbStored, ""); err != nil {
		return err
	}
	_, err = b.on(ctx, dbStored, func(g *testbed.Servers) (drainResult, error) {
		return b.drain(ctx, g, backlog{entries: append(before, b.inOrder...), instances: 1})
	})
	if err != nil {
		return fmt.Errorf("store rows: %w", err)
	}
	from := b.database(dbStored)
	there, err := ceiling.Export(ctx, from, b.second.Add(-48*time.Hour), b.second, benchBatch)
	if err != nil {
		return err
	}
	if b.rows, err = ceiling.Export(ctx, from, b.second, b.second.Add(48*time.Hour), benchBatch); err != nil {
		return err
	}
	if err := b.create(ctx, dbTemplate, ""); err != nil {
		return err
	}
	if _, err := ceiling.Copy(ctx, b.database(dbTemplate), there, 1); err != nil {
		return fmt.Errorf("copy the rows that are there before: %w", err)
	}
	return ceiling.Exec(ctx, b.database(dbTemplate), "vacuum analyze public.positions")
}

// database returns the URL of a database.
func (b *run) database(name string) string {
	u, err := url.Parse(b.env.Postgres.URL())
	if err != nil {
		return ""
	}
	u.Path = "/" + name
	return u.String()
}

// create makes a database, with the schema or as a copy of another one.
func (b *run) create(ctx context.Context, name, like string) error {
	sql := "create database " + name
	if like != "" {
		// Copying files ends with a checkpoint: none is left over for what is measured.
		sql += " template " + like + " strategy file_copy"
	}
	if err := ceiling.Exec(ctx, b.env.Postgres.URL(), sql); err != nil {
		return err
	}
	if like != "" {
		return nil
	}
	if _, err := schema.Migrate(ctx, b.database(name), b.cfg.Log); err != nil {
		return fmt.Errorf("make the schema: %w", err)
	}
	return nil
}

// inDatabase measures in a database of its own.
func (b *run) inDatabase(ctx context.Context, measure func(url string) (float64, error)) (rate float64, err error) {
	b.made++
	name := fmt.Sprintf("bench%d", b.made)
	if err := b.create(ctx, name, dbTemplate); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, b.drop(ctx, name)) }()
	return measure(b.database(name))
}

func (b *run) drop(ctx context.Context, name string) error {
	return ceiling.Exec(ctx, b.env.Postgres.URL(), "drop database "+name+" with (force)")
}

// inRound measures the service in a database of its own, with Redis empty.
func (b *run) inRound(ctx context.Context, measure func(*testbed.Servers) (drainResult, error)) (w drainResult, err error) {
	_, err = b.inDatabase(ctx, func(string) (float64, error) {
		w, err = b.on(ctx, fmt.Sprintf("bench%d", b.made), measure)
		return w.rate, err
	})
	return w, err
}

// on measures the service on a database that exists, with Redis empty.
func (b *run) on(ctx context.Context, database string, measure func(*testbed.Servers) (drainResult, error)) (w drainResult, err error) {
	return b.onStreams(ctx, database, []string{"telemetry:bench"}, measure)
}

func (b *run) onStreams(ctx context.Context, database string, names []string, measure func(*testbed.Servers) (drainResult, error)) (w drainResult, err error) {
	if err := b.emptyRedis(ctx); err != nil {
		return w, err
	}
	var g *testbed.Servers
	for _, name := range slices.Backward(names) {
		var others []*testbed.Servers
		if g != nil {
			others = append([]*testbed.Servers{g}, g.Others...)
			g.Others = nil
		}
		g = &testbed.Servers{RedisURL: b.redisURL(), PostgresURL: b.database(database), Stream: name, Group: "processor", Others: others}
	}
	defer func() { err = errors.Join(err, g.Close(context.WithoutCancel(ctx))) }()
	for _, s := range g.All() {
		if err := s.Connect(ctx); err != nil {
			return w, err
		}
	}
	return measure(g)
}

// folder returns a new one for the logs of the next instances.
func (b *run) folder() (string, error) {
	dir, err := os.MkdirTemp(b.cfg.Dir, "round-")
	if err != nil {
		return "", fmt.Errorf("make a folder: %w", err)
	}
	return dir, nil
}

// decode measures one core, without anything else.
func (b *run) decode() {
	decoder := telemetry.NewDecoder(telemetry.DefaultLimits())
	entries := make([]telemetry.Entry, min(len(b.inOrder), 100_000))
	for i := range entries {
		entries[i] = telemetry.Entry{ID: telemetry.EntryID{Ms: uint64(b.second.UnixMilli()) + uint64(i)}, Fields: b.inOrder[i]}
	}
	runtime.GC()
	var r telemetry.Record
	for range 3 {
		began, wrong := time.Now(), 0
		for i := range entries {
			if decoder.Decode(&entries[i], &r) != nil {
				wrong++
			}
		}
		b.res.Decode.add(float64(len(entries)-wrong) / time.Since(began).Seconds())
	}
}

// cpuOfTree returns the CPU time of a process, of its children that live and of those
// it has waited for: all of a Postgres server. A child that ends meanwhile would
// be in neither figure, so it is measured again then.
func cpuOfTree(pid int) time.Duration {
	for {
		waited := cpuOfWaitedFor(pid)
		total := testbed.CPUOf(pid) + waited + cpuOfChildren(pid)
		if cpuOfWaitedFor(pid) == waited {
			return total
		}
	}
}

func cpuOfChildren(pid int) (total time.Duration) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0
	}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // has ended meanwhile
		}
		fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
		if len(fields) > 1 && string(fields[1]) == strconv.Itoa(pid) {
			if child, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
				total += testbed.CPUOf(child)
			}
		}
	}
	return total
}

func cpuOfWaitedFor(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 15 {
		return 0
	}
	user, _ := strconv.Atoi(string(fields[13]))
	system, _ := strconv.Atoi(string(fields[14]))
	return time.Duration(user+system) * testbed.ClockTick
}
