package testenv

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/devenv"
)

// claimKey marks a Redis that was named by TEST_REDIS_URL and found empty, for
// the other test processes of the run, which no longer find it so.
const claimKey = "testenv:claimed"

// claimFor is how long a claim outlives the last test process that made it.
const claimFor = time.Hour

// claim sets the mark if the database is empty or marked already.
//
// KEYS[1] the mark; ARGV[1] its life in seconds; replies with the number of
// keys that are in the way.
const claim = `
if redis.call('EXISTS', KEYS[1]) == 0 then
	local n = redis.call('DBSIZE')
	if n > 0 then return n end
end
redis.call('SET', KEYS[1], '1', 'EX', ARGV[1])
return 0`

// RedisCorner is one test's names on a Redis server that it shares with others.
type RedisCorner struct {
	URL    string // of the server, for the code under test
	Token  string // unique, part of every name; keys that contain it are removed after the test
	Stream string // a stream of this test alone
	Group  string // a consumer group of this test alone

	client *redis.Client
}

// Redis gives the test names of its own.
func Redis(tb testing.TB) *RedisCorner {
	tb.Helper()
	var url, reach string
	if w := World(tb); w.Private() {
		env := process.private.of(tb, w)
		url, reach = env.Redis.URL(), env.RedisFor()
	} else {
		url = process.redis.use(tb, redisVariable, devenv.Options{Redis: true}, claimRedis)
		reach = url
	}
	opts, err := devenv.RedisOptions(redisVariable, url)
	if err != nil {
		tb.Fatal(err)
	}
	token := unique()
	corner := &RedisCorner{
		URL:    reach,
		Token:  token,
		Stream: "test-" + token + ":telemetry",
		Group:  "group-" + token,
		client: redis.NewClient(opts),
	}
	tb.Cleanup(func() {
		if err := corner.sweep(context.WithoutCancel(tb.Context())); err != nil {
			tb.Errorf("remove the test's keys from Redis: %v", err)
		}
		_ = corner.client.Close()
	})
	return corner
}

// Key makes a key of the test's own.
func (c *RedisCorner) Key(name string) string { return "test-" + c.Token + ":" + name }

// Client returns the test's own connection, for reading and writing; it is closed when
// the test ends.
func (c *RedisCorner) Client() *redis.Client { return c.client }

// Options returns a fresh set of options for a client of the code under test.
func (c *RedisCorner) Options() *redis.Options {
	opts := *c.client.Options()
	return &opts
}

func (c *RedisCorner) sweep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	keys := c.client.Scan(ctx, 0, "*"+c.Token+"*", 1000).Iterator()
	for keys.Next(ctx) {
		if err := c.client.Unlink(ctx, keys.Val()).Err(); err != nil {
			return fmt.Errorf("unlink: %w", err)
		}
	}
	if err := keys.Err(); err != nil {
		return fmt.Errorf("scan: %w", err)
	}
	return nil
}

func claimRedis(ctx context.Context, url string) error {
	opts, err := devenv.RedisOptions(redisVariable, url)
	if err != nil {
		return err
	}
	client := redis.NewClient(opts)
	defer func() { _ = client.Close() }()
	n, err := client.Eval(ctx, claim, []string{claimKey}, int(claimFor.Seconds())).Int64()
	if err != nil {
		return fmt.Errorf("look into %s: %w", redisVariable, err)
	}
	if n > 0 {
		return fmt.Errorf("%s names database %d of the Redis at %s, which holds %d keys: tests need an empty database",
			redisVariable, opts.DB, opts.Addr, n)
	}
	return nil
}

// unique returns a lower-case word that no other test gets.
func unique() string { return strings.ToLower(rand.Text()[:12]) }

// Entries reads a stream: from an ID on, itself included, or its newest one if from is "+".
func Entries(client redis.UniversalClient, key string) func(ctx context.Context, from string, most int64) (ids []string, fields []map[string]any, err error) {
	return func(ctx context.Context, from string, most int64) (ids []string, fields []map[string]any, err error) {
		var found []redis.XMessage
		if from == "+" {
			found, err = client.XRevRangeN(ctx, key, "+", "-", 1).Result()
		} else {
			found, err = client.XRangeN(ctx, key, from, "+", most).Result()
		}
		for _, m := range found {
			ids, fields = append(ids, m.ID), append(fields, m.Values)
		}
		return ids, fields, err
	}
}
