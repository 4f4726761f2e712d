package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/modules"
)

func newDeviceCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "device",
		Short: "Inspect and repair one device",
		Long: `Shows what is stored of one device, checks it, and asks the owner of its shard to
load it again, derive its crossings again or remove it. Requests are rows of
processor.requests with an audit; they wait while the shard has no owner.`,
		Example: `  processor device show 356307042441013
  processor device verify 356307042441013
  processor device rehydrate 356307042441013`,
	}, newDeviceShowCommand(), newDeviceVerifyCommand(), newDeviceRehydrateCommand(), newDeviceRecomputeCommand(), newDeviceEraseCommand())
}

// fleetDB is the database of a fleet as operators' commands use it.
type fleetDB struct {
	pool  *pgxpool.Pool
	scope store.Scope
	pins  store.FleetSettings
	redis config.Redis
	by    string
}

// openFleetDB connects to Postgres and reads what the fleet has pinned there.
func openFleetDB(ctx context.Context) (*fleetDB, error) {
	redis, err := config.LoadRedis(os.Environ())
	if err != nil {
		return nil, err
	}
	pg, err := config.LoadPostgres(os.Environ())
	if err != nil {
		return nil, err
	}
	pool, err := store.Open(ctx, store.Config{
		URL: pg.URL.Reveal(), Member: "operator", MaxConns: 2,
		ConnectTimeout: pg.ConnectTimeout, StatementTimeout: pg.StatementTimeout, LockTimeout: pg.LockTimeout,
	})
	if err != nil {
		return nil, exit(exitConfig, err)
	}
	db := &fleetDB{pool: pool, scope: store.Scope{Stream: redis.Stream, Group: redis.Group}, redis: redis, by: operatorName()}
	asking, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if db.pins, err = store.ReadFleetSettings(asking, pool, db.scope); err != nil {
		pool.Close()
		return nil, modules.FirstPostgresError(pg.URL, err)
	}
	return db, nil
}

// redisAnswers says in words when it does not.
func redisAnswers(ctx context.Context, cfg config.Redis, group *stream.Group) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return modules.RedisError(cfg, group.Ping(ctx))
}

func (db *fleetDB) devices() *store.Devices {
	return store.NewDevices(db.pool, db.scope, db.pins, db.by)
}

// operatorName is who asks, for the audit.
func operatorName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	if u, err := user.Current(); err == nil {
		return u.Username + "@" + host
	}
	return fmt.Sprintf("uid %d@%s", os.Getuid(), host)
}

// deviceShown is the answer of device show.
type deviceShown struct {
	store.Device
	// What Redis holds of the device; null while it does not answer.
	Undispatched *int64 `json:"undispatched"` // in the stream, on no queue yet
	Pending      *int64 `json:"pending"`      // on a queue, in the hands of an instance or before
	DeadLetters  *int64 `json:"dead_letters"`
	// AtLeast says that there may be more undispatched and pending ones than were
	// looked for.
	AtLeast bool `json:"at_least"`
}

func newDeviceShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show IMEI",
		Short: "Show the stored data and the owner of a device",
		Long: `Shows what is stored of a device, what of it waits in Redis, and who works on it.
Exits 1 when nothing is known of it.`,
		Example: `  processor device show 356307042441013
  processor device show 356307042441013 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			db, err := openFleetDB(cmd.Context())
			if err != nil {
				return err
			}
			defer db.pool.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
			defer cancel()
			var d deviceShown
			if d.Device, err = db.devices().Show(ctx, args[0]); err != nil {
				return err
			}
			if err := db.askRedis(ctx, &d); err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "processor: warning: Redis does not say what is pending:", err)
			}
			out := outputOf(cmd)
			if d.nothing() {
				return errors.Join(out.Result(d, func() error { return nil }), errUnknownDevice(args[0], "nothing is known"))
			}
			return out.Result(d, func() error { return d.print(out) })
		},
	}
}

// nothing reports whether nothing is known of the device anywhere.
func (d *deviceShown) nothing() bool {
	waits := func(n *int64) bool { return n != nil && *n > 0 }
	return d.Last == nil && len(d.Recent)+len(d.Fences)+len(d.Requests) == 0 && d.Deferred+d.Archived == 0 &&
		!waits(d.Undispatched) && !waits(d.Pending) && !waits(d.DeadLetters)
}

// errUnknownDevice is that a device ID may be mistyped: what says how it is known.
func errUnknownDevice(device, what string) error {
	return exit(exitFinding, fmt.Errorf("%s of device %s; is the ID right? see processor trace %s", what, device, device))
}

// lastEntries is how many of a device are looked for in the stream.
const lastEntries = 500

// askRedis looks for what waits in Redis.
func (db *fleetDB) askRedis(ctx context.Context, d *deviceShown) error {
	where := stream.Config{
		URL: db.redis.URL.Reveal(), Stream: db.redis.Stream, Group: db.redis.Group, Shards: db.pins.Shards,
		Timeout: askTimeout, Name: "processor/device",
	}
	client, err := stream.Connect(where)
	if err != nil {
		return err
	}
	defer client.Close() //nolint:errcheck // only read from
	group, err := stream.NewGroup(client, where)
	if err != nil {
		return err
	}
	if err := redisAnswers(ctx, db.redis, group); err != nil {
		return err
	}
	backlog, err := group.Backlog(ctx)
	if err != nil {
		return err
	}
	found, reached, err := group.Trace(ctx, d.Device.Device, lastEntries)
	if err != nil {
		return err
	}
	var undispatched, pending int64
	for _, f := range found {
		switch {
		case !f.Dispatched:
			undispatched++
		case f.Pending:
			pending++
		}
	}
	// What is older than the oldest unfinished entry of all is done.
	d.AtLeast = !backlog.OldestKnown || !backlog.Oldest.IsZero() && backlog.Oldest.Less(reached)
	d.Undispatched, d.Pending = &undispatched, &pending
	dead, err := stream.NewDeadLetters(client, where, db.redis.DLQStream)
	if err != nil {
		return err
	}
	var letters int64
	for l, err := range dead.All(ctx) {
		if err != nil {
			return err
		}
		if id, _ := l.Entry.Field("device_id"); id == d.Device.Device {
			letters++
		}
	}
	d.DeadLetters = &letters
	return nil
}

// counted is how many there are, as far as is known.
func (d *deviceShown) counted(n *int64) any {
	if n != nil && d.AtLeast {
		return cli.Number(*n).String() + " or more"
	}
	return cli.OrUnknown(n)
}

func (d *deviceShown) print(out *cli.Output) error {
	t := cli.NewTable("WHAT", "VALUE")
	t.Row("device", d.Device.Device)
	t.Row("shard", fmt.Sprint(d.Shard))
	owner := any(cli.Colored("nobody", cli.Yellow))
	if d.Owner != nil {
		owner = *d.Owner
	}
	t.Row("owner", owner)
	t.Row("epoch", fmt.Sprint(d.Epoch))
	if d.Last == nil {
		t.Row("last position", "none that takes part in state")
	} else {
		t.Row("last position", fmt.Sprintf("%s at %v, %v", clock(d.Last.Time), d.Last.Latitude, d.Last.Longitude))
	}
	for _, f := range d.Fences {
		t.Row("fence "+f.Fence, fmt.Sprintf("%s at %s", f.Kind, clock(f.At)))
	}
	t.Row("not dispatched yet", d.counted(d.Undispatched))
	t.Row("pending", d.counted(d.Pending))
	t.Row("deferred", cli.Number(d.Deferred))
	t.Row("dead letters", cli.OrUnknown(d.DeadLetters))
	t.Row("dead letters archived", cli.Number(d.Archived))
	if err := out.Table(t); err != nil {
		return err
	}
	if len(d.Recent) > 0 {
		t := cli.NewTable("DEVICE TIME", "STREAM TIME", "LATITUDE", "LONGITUDE", "SPEED", "REMARK")
		for _, p := range d.Recent {
			remark := ""
			switch {
			case p.Faulty:
				remark = "faulty"
			case p.Future:
				remark = "future"
			case p.NoFix:
				remark = "no fix"
			}
			t.Row(clock(p.Time), clock(p.Ingested), p.Latitude, p.Longitude, p.Speed, remark)
		}
		if err := errors.Join(out.Line(""), out.Table(t)); err != nil {
			return err
		}
	}
	if len(d.Requests) > 0 {
		t := cli.NewTable("REQUEST", "KIND", "STATE", "ASKED", "BY")
		for _, r := range d.Requests {
			t.Row(r.ID, r.Kind, r.State, clock(r.At), r.By)
		}
		return errors.Join(out.Line(""), out.Table(t))
	}
	return nil
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// mustKnow refuses a device of which nothing is stored.
func (db *fleetDB) mustKnow(ctx context.Context, device string) error {
	known, err := db.devices().Known(ctx, device)
	if err == nil && !known {
		err = errUnknownDevice(device, "nothing is stored")
	}
	return err
}

func newDeviceVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify IMEI",
		Short: "Recompute a device's crossings and print differences",
		Long: `Follows the stored positions of a device from the first to the last through the
fences in force, and compares what they say with what is recorded. Changes
nothing. Exits 1 when something differs; processor device recompute fixes it.

The positions themselves are taken as they are: whether they are true, or any is
missing, is not checked. Without fences there is nothing to verify. Exits 1 as well
when nothing is stored of the device.`,
		Example: `  processor device verify 356307042441013
  processor device verify 356307042441013 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			db, err := openFleetDB(cmd.Context())
			if err != nil {
				return err
			}
			defer db.pool.Close()
			if err := db.mustKnow(cmd.Context(), args[0]); err != nil {
				return err
			}
			v, err := db.devices().Verify(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			out := outputOf(cmd)
			if err := out.Result(v, func() error { return printVerification(out, &v) }); err != nil {
				return err
			}
			if !v.Good() {
				return exit(exitFinding, nil)
			}
			return nil
		},
	}
}

func printVerification(out *cli.Output, v *store.Verification) error {
	for _, f := range v.BadFences {
		if err := out.Line("%s %s", out.Paint(cli.Yellow, "left out"), f); err != nil {
			return err
		}
	}
	if !v.Good() {
		t := cli.NewTable("DIFFERENCE", "FENCE", "KIND", "LATER FIX", "ORDINAL", "EXPECTED", "ACTUAL")
		for _, kind := range []struct {
			name string
			list []store.Difference
		}{{"missing", v.Missing}, {"different", v.Different}, {"too much", v.Extra}} {
			for _, d := range kind.list {
				t.Row(cli.Colored(kind.name, cli.Red), d.Fence, d.Kind, clock(d.Later), d.Ordinal, orNone(d.Want), orNone(d.Got))
			}
		}
		if err := out.Table(t); err != nil {
			return err
		}
	}
	if v.Open > 0 {
		if err := out.Line("%s: %s that concern this device, not run yet", out.Paint(cli.Yellow, "note"), cli.Count(v.Open, "recompute request")); err != nil {
			return err
		}
	}
	state := out.Paint(cli.Green, "ok")
	if !v.Good() {
		state = out.Paint(cli.Red, "differs")
	}
	if v.Fences == 0 && v.Good() {
		return out.Line("no fences: nothing to verify; the stored positions (%s) are not checked", cli.Number(v.Positions))
	}
	if err := out.Line("%s: %s, %s as they must be, %d missing, %d different, %d too much",
		state, cli.Count(v.Positions, "position"), cli.Count(v.Crossings, "crossing"), len(v.Missing), len(v.Different), len(v.Extra)); err != nil {
		return err
	}
	return out.Line("the positions themselves are not checked")
}

func orNone(t *time.Time) string {
	if t == nil {
		return "none"
	}
	return clock(*t)
}
