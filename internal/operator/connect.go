package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
)

// askTimeout bounds calls that only query.
const askTimeout = 10 * time.Second

// errNeverStarted reports that there is no fleet yet.
var errNeverStarted = errors.New("no instance has ever started with this stream and group: nothing is pinned yet")

// Fleet is a fleet as its operators see it. Its methods may be called at the
// same time; each is bounded by its context, and queries by 10 s besides.
type Fleet struct {
	cfg     config.Config
	by      string
	scope   store.Scope
	pool    *pgxpool.Pool // nil without a URL
	unpool  func()        // ends or returns it
	client  coordination.Client
	keys    coordination.Keys
	decoder *telemetry.Decoder
}

// Open prepares the connections to the fleet that cfg describes and connects to
// neither server yet. Redis is needed; without POSTGRES_URL what only Postgres
// knows is unknown. name is in the names of the sessions, by is who acts, for the
// audit.
func Open(ctx context.Context, cfg config.Config, name, by string) (*Fleet, error) {
	return new(Sessions).Fleet(ctx, cfg, name, by)
}

// Sessions are those with one Postgres that fleets share, since each has a stream of the same
// database. They exist while one of the fleets is open. The zero value is ready.
type Sessions struct {
	Most int32 // at once; 0 for 3

	mu   sync.Mutex
	pool *pgxpool.Pool
	of   int // fleets
}

// Fleet is Open with these sessions.
func (s *Sessions) Fleet(ctx context.Context, cfg config.Config, name, by string) (*Fleet, error) {
	f := &Fleet{
		cfg: cfg, by: by, scope: store.Scope{Stream: cfg.Redis.Stream, Group: cfg.Redis.Group},
		decoder: telemetry.NewDecoder(telemetry.Limits{
			MaxPayloadBytes: cfg.Telemetry.MaxPayloadBytes, MaxDepth: cfg.Telemetry.MaxDepth, MaxAttributes: cfg.Telemetry.MaxAttributes,
		}),
	}
	where := f.where(1)
	where.Name = "processor/" + name
	client, err := stream.Connect(where)
	if err != nil {
		return nil, fault.Exit(fault.Config, err)
	}
	f.client = client
	names := stream.Names{Stream: cfg.Redis.Stream, Group: cfg.Redis.Group}
	f.keys = coordination.Keys{Prefix: names.Members(), Lock: names.Lock()}
	if cfg.Postgres.URL.Reveal() == "" {
		return f, nil
	}
	if err := s.lend(ctx, f, name); err != nil {
		_ = client.Close() // never used
		return nil, fault.Exit(fault.Config, err)
	}
	return f, nil
}

// lend gives a fleet the sessions.
func (s *Sessions) lend(ctx context.Context, f *Fleet, name string) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == 0 {
		s.pool, err = store.Open(ctx, store.Config{
			URL: f.cfg.Postgres.URL.Reveal(), Member: name, MaxConns: cmp.Or(s.Most, 3), ConnectTimeout: f.cfg.Postgres.ConnectTimeout,
			StatementTimeout: f.cfg.Postgres.StatementTimeout, LockTimeout: f.cfg.Postgres.LockTimeout,
		})
		if err != nil {
			return err
		}
	}
	s.of++
	f.pool = s.pool
	f.unpool = sync.OnceFunc(func() {
		s.mu.Lock()
		s.of--
		pool, last := s.pool, s.of == 0
		s.mu.Unlock()
		if last {
			pool.Close() // waits for queries under way, which another fleet is not to wait for
		}
	})
	return nil
}

// Close ends the connections.
func (f *Fleet) Close() {
	if f.unpool != nil {
		f.unpool()
	}
	_ = f.client.Close() // nothing is under way
}

// Stream returns the fleet's stream.
func (f *Fleet) Stream() string { return f.scope.Stream }

// Name returns the user and host for the audit.
func Name() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	if u, err := user.Current(); err == nil {
		return u.Username + "@" + host
	}
	return fmt.Sprintf("uid %d@%s", os.Getuid(), host)
}

func (f *Fleet) where(shards int) stream.Config {
	return stream.Config{
		URL: f.cfg.Redis.URL.Reveal(), Stream: f.cfg.Redis.Stream, Group: f.cfg.Redis.Group, Shards: shards, Timeout: askTimeout,
	}
}

// postgres returns what the fleet has pinned, or a readable error.
func (f *Fleet) postgres(ctx context.Context) (store.FleetSettings, error) {
	if f.pool == nil {
		return store.FleetSettings{}, fault.Exitf(fault.Config, "there is no usable POSTGRES_URL")
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	pinned, err := store.ReadFleetSettings(ctx, f.pool, f.scope)
	return pinned, fault.FirstPostgresError(f.cfg.Postgres.URL, err)
}

// explained makes an error of Postgres readable. One of Redis, or of time that is
// up with either server, is returned as it is.
func (f *Fleet) explained(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fault.PostgresError("POSTGRES_URL", f.cfg.Postgres.URL, err)
}

// redis returns the group, by a number of shards, once Redis answers.
func (f *Fleet) redis(ctx context.Context, shards int) (*stream.Group, error) {
	group, err := stream.NewGroup(f.client, f.where(max(1, shards)))
	if err != nil {
		return nil, fault.Exit(fault.Config, err)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return group, fault.RedisError(f.cfg.Redis, group.Ping(ctx))
}

// both returns the group by the pinned number of shards, once both servers answer.
func (f *Fleet) both(ctx context.Context) (*stream.Group, store.FleetSettings, error) {
	pinned, err := f.postgres(ctx)
	if err != nil {
		return nil, pinned, err
	}
	group, err := f.redis(ctx, pinned.Shards)
	return group, pinned, err
}

// changeable is sameFleet for changes of the fleet: it rejects one that never started.
func (f *Fleet) changeable(ctx context.Context) (*stream.Group, store.FleetSettings, error) {
	group, pinned, err := f.sameFleet(ctx)
	if err == nil && pinned.Shards == 0 {
		err = errNeverStarted
	}
	return group, pinned, err
}

// sameFleet is both for changes: it rejects a database that is not the one the fleet on
// this Redis works with, where a change there and here would be of two fleets.
func (f *Fleet) sameFleet(ctx context.Context) (*stream.Group, store.FleetSettings, error) {
	group, pinned, err := f.both(ctx)
	if err != nil {
		return nil, pinned, err
	}
	d, err := group.FleetDatabase(ctx)
	if err != nil || d.ID == "" || d.ID == pinned.Database {
		return group, pinned, err
	}
	return nil, pinned, fault.Exitf(fault.Config, "the fleet on Redis at %s works with the database %s %s, and POSTGRES_URL leads to another one (%s): "+
		"correct POSTGRES_URL or REDIS_URL, or see processor fleet adopt; nothing was changed", f.cfg.Redis.URL.Addresses(), d.ID, d.Address, pinned.Database)
}

// home returns the fleet of the stream that a device came from last, this one if that is
// not known.
func (f *Fleet) home(ctx context.Context, device string) (*Fleet, error) {
	if f.pool == nil {
		return f, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	scope, err := store.HomeOf(ctx, f.pool, device, askTimeout, f.scope)
	if err != nil || scope == f.scope {
		return f, fault.FirstPostgresError(f.cfg.Postgres.URL, err)
	}
	return f.of(scope), nil
}

// of returns the fleet of another stream, by the same connections.
func (f *Fleet) of(scope store.Scope) *Fleet {
	other := *f
	other.scope = scope
	other.cfg.Redis = f.cfg.Redis.Of(scope.Stream, scope.Group)
	names := stream.Names{Stream: scope.Stream, Group: scope.Group}
	other.keys = coordination.Keys{Prefix: names.Members(), Lock: names.Lock()}
	return &other
}

func (f *Fleet) heartbeats(ctx context.Context) ([]coordination.Member, error) {
	return coordination.ReadMembers(ctx, f.client, f.keys)
}

func (f *Fleet) devices(pinned store.FleetSettings) *store.Devices {
	return store.NewDevices(f.pool, f.scope, pinned, f.by)
}

func (f *Fleet) ledger() *store.Ledger {
	return store.NewLedger(f.pool, f.scope, "", f.cfg.Postgres.StatementTimeout)
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
