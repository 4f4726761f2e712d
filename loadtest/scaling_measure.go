package loadtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/loadtest/fleet"
)

const (
	curveRate       = 1000 // records a second in device time
	copyConnections = 2
	settledWithin   = 250 * time.Millisecond
	dbFilled        = "filled" // the schema with the rows of a point

	walSQL = "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8" // bytes ever written
)

// measuring is one curve being measured.
type measuring struct {
	cfg   CurvesConfig
	bench bench

	// Of the last backlog, while it was appended.
	bytes float64 // of Redis an entry
	added float64 // microseconds of Redis an entry
}

// point measures the service, and COPY next to it if that is asked for.
func (m *measuring) point(ctx context.Context, curve string, s setup) (got Measured, err error) {
	b := &m.bench
	like := dbTemplate
	if s.rows > 0 {
		like = dbFilled
		if err := m.fillTable(ctx, s); err != nil {
			return got, err
		}
		defer func() { err = errors.Join(err, b.drop(ctx, dbFilled)) }()
	}
	profile := s.fleet(m.cfg.Bench.Seed)
	known := profile.Start.Add(time.Duration(s.first) * time.Second / curveRate) // device time
	var rows, before [][]byte
	err = m.inCopyOf(ctx, like, func(name string) error {
		url := b.database(name)
		written, err := m.cfg.Postgres.Number(ctx, url, walSQL)
		if err != nil {
			return err
		}
		w, err := b.on(ctx, name, func(g *testbed) (drainResult, error) {
			return m.service(ctx, g, s, curve+"-"+slug(s.at))
		})
		if err != nil {
			return err
		}
		got = Measured{
			Rate: w.rate, Service: w.own, Redis: w.redis, Postgres: w.postgres, Total: w.own + w.redis + w.postgres,
			PeakMB: w.peak, PerCommit: w.perCommit,
			RedisAdd: m.added, RedisBytes: m.bytes, WALBytes: -written / float64(s.first+s.entries),
		}
		if err := m.sizes(ctx, url, s, &got); err != nil || !s.copied {
			return err
		}
		if before, err = m.cfg.Postgres.Export(ctx, url, profile.Start, known, benchBatch); err != nil {
			return err
		}
		rows, err = m.cfg.Postgres.Export(ctx, url, known, known.Add(10*365*24*time.Hour), benchBatch)
		return err
	})
	if err != nil {
		return got, err
	}
	if !s.copied {
		m.tell(curve, s, &got)
		return got, nil
	}
	err = m.inCopyOf(ctx, like, func(name string) error {
		url := b.database(name)
		if _, err := m.cfg.Postgres.Copy(ctx, url, before, 1); err != nil {
			return err
		}
		spent := cpuOfTree(b.env.Postgres.PID())
		took, err := m.cfg.Postgres.Copy(ctx, url, rows, copyConnections)
		spent = cpuOfTree(b.env.Postgres.PID()) - spent
		got.Copy = float64(spent.Microseconds()) / float64(s.entries)
		got.CopyRate = float64(s.entries) / took.Seconds()
		return err
	})
	if err != nil {
		return got, fmt.Errorf("copy the same rows: %w", err)
	}
	m.tell(curve, s, &got)
	return got, nil
}

func (m *measuring) tell(curve string, s setup, got *Measured) {
	got.Load, _ = strconv.ParseFloat(loadAverage(), 64)
	text := fmt.Sprintf("%s %s: %s records/s; us a record: service %.1f, Redis %.1f, Postgres %.1f; %.0f a commit, peak %.0f MB",
		curve, s.at, cli.Thousands(int64(got.Rate)), got.Service, got.Redis, got.Postgres, got.PerCommit, got.PeakMB)
	if s.copied {
		text += fmt.Sprintf("; COPY %s rows/s, %.1f us", cli.Thousands(int64(got.CopyRate)), got.Copy)
	}
	m.bench.note("%s (load %.1f)", text, got.Load)
}

// inCopyOf calls do with the name of a database that is like another one.
func (m *measuring) inCopyOf(ctx context.Context, like string, do func(name string) error) (err error) {
	b := &m.bench
	b.made++
	name := fmt.Sprintf("curve%d", b.made)
	if err := b.create(ctx, name, like); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.drop(context.WithoutCancel(ctx), name)) }()
	return do(name)
}

// fleet sends the first records and those that are measured.
func (s setup) fleet(seed uint64) fleet.Profile {
	n := s.first + s.entries
	interval := time.Duration(s.devices) * time.Second / curveRate
	p := fleet.Steady(seed, s.devices, curveRate, time.Duration(n/s.devices+2)*interval)
	p.Limit = n
	return p
}

// service puts up the fences, appends the backlog and has it drained.
func (m *measuring) service(ctx context.Context, g *testbed, s setup, name string) (w drainResult, err error) {
	if s.fences > 0 {
		fences, err := fencesAround(s.fleet(m.cfg.Bench.Seed), s.fences)
		if err != nil {
			return w, err
		}
		if _, err := g.fences.Import(ctx, fences, "import", true); err != nil {
			return w, fmt.Errorf("put up fences: %w", err)
		}
	}
	before, err := m.redisUses(ctx)
	if err != nil {
		return w, err
	}
	spent := cpuOf(m.bench.env.Redis.PID())
	if err := m.append(ctx, g, s); err != nil {
		return w, err
	}
	after, err := m.redisUses(ctx)
	if err != nil {
		return w, err
	}
	spent = cpuOf(m.bench.env.Redis.PID()) - spent
	m.added = float64(spent.Microseconds()) / float64(s.first+s.entries)
	m.bytes = (after - before) / float64(s.first+s.entries)
	return m.drain(ctx, g, s, name)
}

// append adds the backlog to the stream and holds little of it in memory.
func (m *measuring) append(ctx context.Context, g *testbed, s setup) error {
	p := s.fleet(m.cfg.Bench.Seed)
	source, err := p.Source()
	if err != nil {
		return err
	}
	batch, added := make([][]string, 0, benchPipe), 0
	for more := true; more; {
		var it fleet.Item
		if it, more = source.Next(); more {
			it.Message.DeviceID = fleet.DeviceID(scattered(added, s.devices))
			if s.attributes >= 0 {
				it.Message.Attributes = numbers(s.attributes, added)
			}
			batch = append(batch, it.Fields())
			added++
		}
		if len(batch) == benchPipe || !more {
			if _, err := g.publisher.Publish(ctx, batch); err != nil {
				return fmt.Errorf("append the backlog: %w", err)
			}
			batch = batch[:0]
		}
	}
	if added != s.first+s.entries {
		return fmt.Errorf("the fleet yields %d entries, not %d", added, s.first+s.entries)
	}
	return nil
}

// scattered returns the device of a record. The fleet reports in the order of device
// IDs, which no real one does, and which would be the order of the index.
func scattered(record, devices int) int {
	const stride = 618_033 // shares no factor with the numbers of devices
	return record % devices * stride % devices
}

// numbers returns n attributes as trackers have them, of up to five digits.
func numbers(n, record int) []fleet.Attribute {
	out := make([]fleet.Attribute, n)
	for i := range out {
		out[i] = fleet.NumberAttribute(strconv.Itoa(i+1), float64((record*31+i*977)%20_000))
	}
	return out
}

// drain measures between the first fifth and the last tenth of what comes
// after the first records.
func (m *measuring) drain(ctx context.Context, g *testbed, s setup, name string) (w drainResult, err error) {
	b := &m.bench
	dir, err := b.folder()
	if err != nil {
		return w, err
	}
	line := &cluster{program: m.cfg.Bench.Processor, env: append(append([]string{}, m.cfg.Bench.Env...), s.env...), dir: dir, ground: g}
	defer func() { err = errors.Join(err, line.close()) }()
	for n := range s.instances {
		if _, err := line.start(n); err != nil {
			return w, err
		}
	}
	total := int64(s.entries)
	var from, to spent
	err = awaitDrained(ctx, g, line, func(outstanding int64, now time.Time) error {
		switch {
		case from.at.IsZero() && outstanding <= total*4/5:
			// Several instances share nothing until their shards have moved.
			if s.instances == 1 || line.awaitSettled(ctx, settledWithin) == nil {
				from = b.spent(ctx, line, outstanding, now)
			}
		case to.at.IsZero() && outstanding <= total/10:
			to = b.spent(ctx, line, outstanding, now)
			return m.heap(ctx, line, name)
		}
		return nil
	})
	if err != nil {
		return w, err
	}
	if w, err = resultBetween(from, to, total); err != nil {
		return w, err
	}
	for _, in := range line.current() {
		w.peak = max(w.peak, peakMB(in.cmd.Process.Pid))
	}
	return w, line.stop(ctx)
}

// heap keeps what the first instance has in memory, if profiles are asked for.
func (m *measuring) heap(ctx context.Context, line *cluster, name string) error {
	if m.cfg.Bench.Profile == "" {
		return nil
	}
	address, _ := line.current()[0].tap.known()
	return download(ctx, "http://"+address+"/debug/pprof/heap", filepath.Join(m.cfg.Bench.Profile, name+".heap.pprof"))
}

// sizes asks what was stored, and makes sure that it is everything.
func (m *measuring) sizes(ctx context.Context, url string, s setup, got *Measured) error {
	ask := func(sql string) (n float64, err error) { return m.cfg.Postgres.Number(ctx, url, sql) }
	stored, err := ask("select count(*)::float8 from public.positions")
	if err != nil {
		return err
	}
	if want := float64(s.rows + s.first + s.entries); stored != want {
		return fmt.Errorf("the backlog is done and %.0f rows are stored, not %.0f", stored, want)
	}
	for _, f := range []struct {
		into *float64
		sql  string
		each float64
	}{
		{&got.RowBytes, "select pg_table_size('public.positions')::float8", stored},
		{&got.IndexBytes, "select pg_indexes_size('public.positions')::float8", stored},
		{&got.Crossings, "select count(*)::float8 from processor.timing_records", float64(s.first + s.entries)},
		{&got.WALBytes, walSQL, float64(s.first + s.entries)},
	} {
		n, err := ask(f.sql)
		if err != nil {
			return err
		}
		*f.into += n / f.each
	}
	return nil
}

// redisUses returns the bytes of memory that Redis has in use.
func (m *measuring) redisUses(ctx context.Context) (bytes float64, err error) {
	r, err := m.bench.dialRedis(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.conn.Close()) }()
	if err := r.conn.SetDeadline(time.Now().Add(serverTimeout)); err != nil {
		return 0, err
	}
	if _, err := r.conn.Write([]byte("info memory\r\n")); err != nil {
		return 0, fmt.Errorf("write to Redis: %w", err)
	}
	for lines := bufio.NewScanner(r.in); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "used_memory:"); ok {
			return strconv.ParseFloat(text, 64)
		}
	}
	return 0, errors.New("redis does not say how much memory it uses")
}

// fillTable makes a database with rows of the fleet's devices, a second's worth
// of them each second up to the fleet's begin. The indexes are built afterwards,
// which is what lets ten million rows be there in a minute.
func (m *measuring) fillTable(ctx context.Context, s setup) error {
	b := &m.bench
	if err := b.create(ctx, dbFilled, dbTemplate); err != nil {
		return err
	}
	m.bench.note("making %s rows", grouped(s.rows))
	ids := make([]string, s.devices)
	for i := range ids {
		ids[i] = "'" + fleet.DeviceID(i) + "'"
	}
	err := m.cfg.Postgres.Exec(ctx, b.database(dbFilled), fmt.Sprintf(`do $$
declare
  made text[] := (select array_agg(indexdef) from pg_indexes where schemaname = 'public' and tablename = 'positions');
  name text;
  def text;
begin
  perform set_config('maintenance_work_mem', '512MB', true);
  for name in select indexname from pg_indexes where schemaname = 'public' and tablename = 'positions' loop
    execute format('drop index public.%%I', name);
  end loop;
  create temporary table known on commit drop as
  select id, i - 1 as i from unnest(array[%s]) with ordinality as d (id, i);
  analyze known;
  insert into public.positions (device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
  select d.id, at, at, 43.5 + random() / 10, 7.1 + random() / 10, 300, 90, 50, 9, 0, '8E',
    ('{"16":' || k || ',"21":3,"66":12950,"239":1,"240":1,"65001":' || k / %[2]d || '}')::jsonb
  from generate_series(0, %[3]d - 1) as k
  cross join lateral (select timestamptz '%[4]s' - (%[3]d - k) * interval '1 millisecond' as at) as t
  join known as d on d.i = k %% %[2]d;
  foreach def in array made loop
    execute def;
  end loop;
end $$`, strings.Join(ids, ","), s.devices, s.rows, s.fleet(m.cfg.Bench.Seed).Start.UTC().Format(time.RFC3339Nano)))
	if err != nil {
		return fmt.Errorf("make rows: %w", err)
	}
	return m.cfg.Postgres.Exec(ctx, b.database(dbFilled), "vacuum analyze public.positions")
}

// fencesAround returns n fences: some where the fleet drives, as many as fencesAlong
// has, the others circles on a grid of 100 km by 100 km round the first of them.
func fencesAround(p fleet.Profile, n int) ([]geofence.Fence, error) {
	along, err := fencesAlong(p)
	if err != nil {
		return nil, err
	}
	if n < len(along) {
		var some []geofence.Fence
		for i := range n {
			some = append(some, along[i*len(along)/n])
		}
		return some, nil
	}
	source, err := p.Source()
	if err != nil {
		return nil, err
	}
	first, ok := source.Next()
	if !ok {
		return nil, errors.New("the fleet is empty")
	}
	middle := first.Message
	const side = 100_000.0
	perRow := int(math.Ceil(math.Sqrt(float64(n - len(along)))))
	for i := range n - len(along) {
		metres := func(k int) float64 { return side * ((float64(k)+.5)/float64(perRow) - .5) }
		lat := middle.Latitude + metres(i/perRow)/111_195
		lon := middle.Longitude + metres(i%perRow)/(111_195*math.Cos(middle.Latitude*math.Pi/180))
		f := geofence.Fence{ID: fmt.Sprintf("grid-%05d", i+1), Kind: geofence.Circle, RadiusM: fenceSizeM, Valid: geofence.Always, Enabled: true}
		f.Name, f.Geometry = f.ID, fmt.Sprintf(`{"type":"Point","coordinates":[%.7f,%.7f]}`, lon, lat)
		along = append(along, f)
	}
	return along, nil
}
