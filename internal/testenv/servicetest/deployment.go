package servicetest

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// Deployment is a stream and a database for processes.
type Deployment struct {
	T           testing.TB
	RedisURL    string
	PostgresURL string
	Stream      string
	Group       string
}

// New makes a deployment on the servers that tests share. The test runs in
// parallel with others.
func New(t testing.TB) *Deployment {
	t.Helper()
	if t, ok := t.(*testing.T); ok {
		t.Parallel()
	}
	r := testenv.Redis(t)
	return &Deployment{T: t, RedisURL: r.URL, Stream: r.Stream, Group: r.Group, PostgresURL: testenv.Postgres(t, Migrated())}
}

// Migrated returns a database with the service's schema.
func Migrated() testenv.PostgresOption {
	return testenv.WithTemplate("migrated", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	})
}

// Environ returns the configuration of an instance, with settings after it.
func (dep *Deployment) Environ(settings ...string) []string {
	return append([]string{
		"REDIS_URL=" + dep.RedisURL, "POSTGRES_URL=" + dep.PostgresURL,
		"REDIS_TELEMETRY_STREAM=" + dep.Stream, "REDIS_CONSUMER_GROUP=" + dep.Group,
		"METRICS_HOST=127.0.0.1", "METRICS_PORT=0", "LOG_FORMAT=json",
		"MEMBER_TTL=3s", "LEADER_TTL=2s",
	}, slices.Concat(testenv.Environ(dep.T), settings)...)
}

// Run starts an instance.
func (dep *Deployment) Run(settings ...string) *Process {
	dep.T.Helper()
	return Spawn(dep.T, dep.Environ(settings...), "run")
}

// Ask runs a command of an operator, which must end with a code, and decodes
// its JSON. It returns what the command wrote to standard error.
func (dep *Deployment) Ask(want int, into any, args ...string) string {
	dep.T.Helper()
	p := Spawn(dep.T, dep.Environ(), append(args, "--json")...)
	require.Equal(dep.T, want, p.Exit(30*time.Second), "%v: %s", args, p.Errors())
	if into != nil {
		require.NoError(dep.T, json.Unmarshal([]byte(p.Output()), into), p.Output())
	}
	return p.Errors()
}

// Client returns the test's own connection to Redis, as an administrator.
func (dep *Deployment) Client() *redis.Client {
	opts, err := redis.ParseURL(dep.RedisURL)
	require.NoError(dep.T, err)
	c := redis.NewClient(opts)
	dep.T.Cleanup(func() { _ = c.Close() })
	return c
}

// Exec runs a statement as an administrator.
func (dep *Deployment) Exec(sql string, args ...any) {
	dep.T.Helper()
	conn, err := pgx.Connect(dep.T.Context(), dep.PostgresURL)
	require.NoError(dep.T, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(dep.T.Context(), sql, args...)
	require.NoError(dep.T, err)
}

// Publish adds entries and returns their IDs.
func (dep *Deployment) Publish(entries ...[]string) []telemetry.EntryID {
	dep.T.Helper()
	client, err := stream.Connect(stream.Config{URL: dep.RedisURL, Timeout: 10 * time.Second})
	require.NoError(dep.T, err)
	defer client.Close()
	ids, err := fleet.NewPublisher(client, dep.Stream, 0).Publish(context.Background(), entries)
	require.NoError(dep.T, err)
	return ids
}

// Count returns the number that a query returns.
func (dep *Deployment) Count(sql string) (n int, err error) {
	conn, err := pgx.Connect(context.Background(), dep.PostgresURL)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.Background())
	return n, conn.QueryRow(context.Background(), sql).Scan(&n)
}

const positions = "select count(*) from positions"

// Stored returns the number of stored records.
func (dep *Deployment) Stored() (int, error) { return dep.Count(positions) }

// AwaitStored waits until n records are stored.
func (dep *Deployment) AwaitStored(n int, within time.Duration) {
	dep.T.Helper()
	dep.awaitCount(n, within, positions)
}

// AwaitDone waits until every entry is acknowledged, without a look at positions.
func (dep *Deployment) AwaitDone(within time.Duration) {
	dep.T.Helper()
	testenv.Wait(dep.T, within, func() error {
		groups, err := dep.Client().XInfoGroups(dep.T.Context(), dep.Stream).Result()
		if err != nil || groups[0].Lag+groups[0].Pending > 0 {
			return fmt.Errorf("lag %d, pending %d: %w", groups[0].Lag, groups[0].Pending, err)
		}
		return nil
	})
}

// AwaitCount waits until a query returns n.
func (dep *Deployment) AwaitCount(n int, sql string) {
	dep.T.Helper()
	dep.awaitCount(n, 40*time.Second, sql)
}

func (dep *Deployment) awaitCount(n int, within time.Duration, sql string) {
	dep.T.Helper()
	testenv.Wait(dep.T, within, func() error {
		have, err := dep.Count(sql)
		if err == nil && have != n {
			err = fmt.Errorf("want %d, have %d: %s", n, have, sql)
		}
		return err
	})
}

// AwaitDeadLetters waits until there are n dead letters.
func (dep *Deployment) AwaitDeadLetters(n int64) {
	dep.T.Helper()
	c := dep.Client()
	testenv.Wait(dep.T, 30*time.Second, func() error {
		if have, err := c.XLen(context.Background(), dep.Stream+":dlq").Result(); err != nil || have != n {
			return fmt.Errorf("want %d dead letters, have %d, %w", n, have, err)
		}
		return nil
	})
}

// File writes a text to a file of the test's and returns its path.
func File(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// IMEI is the device that Records and the runbook are about.
const IMEI = "352093081452251"

// FourShards makes a small fleet: it starts in less time.
const FourShards = "SHARDS=4"

// Record returns the fields of a valid entry.
func Record(device string, second int64) []string {
	m := fleet.Message{
		DeviceID: device, Codec: "8", Time: time.Unix(1_700_000_000+second, 0).UTC(),
		Latitude: 42.5, Longitude: 1.5, Altitude: 900, Angle: 10, Speed: 50, Satellites: 9,
	}
	return fleet.EntryFields(&m)
}

// Records returns n valid entries of IMEI, from a second on.
func Records(from, n int64) [][]string {
	var list [][]string
	for i := range n {
		list = append(list, Record(IMEI, from+i))
	}
	return list
}

// RecordsOfMany returns n valid entries of as many devices.
func RecordsOfMany(from, n int) [][]string {
	list := make([][]string, n)
	for i := range list {
		list[i] = Record(fmt.Sprintf("device-%d", from+i), int64(from+i))
	}
	return list
}

// InvalidRecord returns an entry that is read well and makes no record.
func InvalidRecord(device string, second int64) []string {
	fields := Record(device, second)
	payload := &fields[len(fields)-1]
	*payload = strings.Replace(*payload, `"latitude":42.5`, `"latitude":91`, 1)
	return fields
}

// MovingRecord returns a valid entry of a device that drives east, a metre or so
// each second.
func MovingRecord(device string, second int64) []string {
	m := fleet.Message{
		DeviceID: device, Codec: "8", Time: time.Unix(1_700_000_000+second, 0).UTC(),
		Latitude: 48.1, Longitude: 11.5 + float64(second)/1e5, Speed: 50, Satellites: 11,
	}
	return fleet.EntryFields(&m)
}
