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
		Long: `Shows and checks what is stored of one device, and asks the owner of its shard to
reload its state, recompute its crossings or erase it. Requests are audited rows of
processor.requests; they wait while the shard has no owner.`,
		Example: `  processor device show 356307042441013
  processor device verify 356307042441013
  processor device rehydrate 356307042441013`,
	}, newDeviceShowCommand(), newDeviceVerifyCommand(), newDeviceRehydrateCommand(), newDeviceRecomputeCommand(), newDeviceEraseCommand())
}

// fleetDB is the database of a fleet.
type fleetDB struct {
	pool  *pgxpool.Pool
	scope store.Scope
	pins  store.FleetSettings
	redis config.Redis
	by    string
}

// openFleetDB connects to Postgres and reads the fleet's pinned settings.
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

// redisAnswers returns a readable error if Redis is unavailable.
func redisAnswers(ctx context.Context, cfg config.Redis, group *stream.Group) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return modules.RedisError(cfg, group.Ping(ctx))
}

func (db *fleetDB) devices() *store.Devices {
	return store.NewDevices(db.pool, db.scope, db.pins, db.by)
}

// operatorName returns the user and host for the audit.
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

// deviceShown is the output of device show.
type deviceShown struct {
	store.Device
	// Counts in Redis; null while it is unavailable.
	Undispatched *int64 `json:"undispatched"` // in the stream, on no queue yet
	Pending      *int64 `json:"pending"`      // on a queue, in flight or not
	DeadLetters  *int64 `json:"dead_letters"`
	// AtLeast: the search ended early, so there may be more undispatched and
	// pending entries.
	AtLeast bool `json:"at_least"`
}

func newDeviceShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show IMEI",
		Short: "Show the stored data and the owner of a device",
		Long: `Shows what is stored of a device, what of it waits in Redis, and the owner of its
shard. Exits 1 for an unknown device.`,
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
				fmt.Fprintln(cmd.ErrOrStderr(), "processor: warning: pending entries are unknown:", err)
			}
			out := outputOf(cmd)
			if d.nothing() {
				return errors.Join(out.Result(d, func() error { return nil }), errUnknownDevice(args[0], "nothing is known of it"))
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

// errUnknownDevice reports a device ID without data, probably mistyped; what says which data is missing.
func errUnknownDevice(device, what string) error {
	return exit(exitFinding, fmt.Errorf("unknown device %s: %s; check the ID, see processor trace %s", device, what, device))
}

// lastEntries is the number of entries of a device to search for in the stream.
const lastEntries = 500

// askRedis counts what waits in Redis.
func (db *fleetDB) askRedis(ctx context.Context, d *deviceShown) error {
	where := stream.Config{
		URL: db.redis.URL.Reveal(), Stream: db.redis.Stream, Group: db.redis.Group, Shards: db.pins.Shards,
		Timeout: askTimeout, Name: "processor/device",
	}
	client, err := stream.Connect(where)
	if err != nil {
		return err
	}
	defer client.Close() //nolint:errcheck // only reads
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
	// Entries older than the oldest unfinished one are finished.
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

// counted returns a count as far as it is known.
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
		t.Row("last position", "none eligible")
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

// mustKnow returns an error if nothing is stored of the device.
func (db *fleetDB) mustKnow(ctx context.Context, device string) error {
	known, err := db.devices().Known(ctx, device)
	if err == nil && !known {
		err = errUnknownDevice(device, "nothing is stored of it")
	}
	return err
}

func newDeviceVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify IMEI",
		Short: "Recompute a device's crossings and print differences",
		Long: `Recomputes the crossings of a device from its stored positions and the current
fences, and compares them with the recorded ones. Changes nothing. Exits 1 if they
differ; processor device recompute fixes that.

The positions are not checked: they may be wrong or incomplete. Without fences there
is nothing to verify. Also exits 1 for an unknown device.`,
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
		if err := out.Line("%s %s", out.Paint(cli.Yellow, "skipped"), f); err != nil {
			return err
		}
	}
	if !v.Good() {
		t := cli.NewTable("DIFFERENCE", "FENCE", "KIND", "LATER FIX", "ORDINAL", "EXPECTED", "ACTUAL")
		for _, kind := range []struct {
			name string
			list []store.Difference
		}{{"missing", v.Missing}, {"different", v.Different}, {"unexpected", v.Extra}} {
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
	if err := out.Line("%s: %s, %s correct, %d missing, %d different, %d unexpected",
		state, cli.Count(v.Positions, "position"), cli.Count(v.Crossings, "crossing"), len(v.Missing), len(v.Different), len(v.Extra)); err != nil {
		return err
	}
	return out.Line("positions are not checked")
}

func orNone(t *time.Time) string {
	if t == nil {
		return "none"
	}
	return clock(*t)
}
