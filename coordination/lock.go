package coordination

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bsm/redislock"
	"github.com/redis/go-redis/v9"
)

// errLockHeld is returned while another member leads.
var errLockHeld = errors.New("the leader's lock is held by another member")

// lock is the leader's lock in Redis. Its random token tells two leaders apart
// in Redis; the term in Postgres is what fences them.
type lock struct {
	redis  Client
	client *redislock.Client
	key    string
	ttl    time.Duration
	held   *redislock.Lock
}

func newLock(client Client, key string, ttl time.Duration) *lock {
	return &lock{redis: client, client: redislock.New(oomScripter{client}), key: key, ttl: ttl}
}

func (l *lock) obtain(ctx context.Context) (left time.Duration, err error) {
	held, err := l.client.Obtain(ctx, l.key, l.ttl, nil)
	if errors.Is(err, redislock.ErrNotObtained) {
		// When the server's clock stepped back, the lock of a dead leader would
		// last longer by that much. A valid lock never expires after this TTL,
		// so LT changes nothing.
		var lasts *redis.DurationCmd
		if _, err := l.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
			p.Do(ctx, "pexpire", l.key, l.ttl.Milliseconds(), "lt")
			lasts = p.PTTL(ctx, l.key)
			return nil
		}); err != nil {
			return 0, fmt.Errorf("bound the leader's lock: %w", err)
		}
		return lasts.Val(), errLockHeld
	}
	if err != nil {
		return 0, fmt.Errorf("obtain the leader's lock: %w", err)
	}
	l.held = held
	return 0, nil
}

func (l *lock) renew(ctx context.Context) error {
	err := l.held.Refresh(ctx, l.ttl, nil)
	if errors.Is(err, redislock.ErrNotObtained) {
		return errLockHeld
	}
	if err != nil {
		return fmt.Errorf("renew the leader's lock: %w", err)
	}
	return nil
}

func (l *lock) release(ctx context.Context) error {
	if l.held == nil {
		return nil
	}
	err := l.held.Release(ctx)
	l.held = nil
	if err != nil && !errors.Is(err, redislock.ErrLockNotHeld) {
		return fmt.Errorf("release the leader's lock: %w", err)
	}
	return nil
}

// oomScripter runs scripts with the allow-oom flag: without a leader nothing
// frees memory in a full Redis. The flag changes a script's digest, so a digest
// computed by the caller is answered as unknown.
type oomScripter struct{ redis.Scripter }

// Eval runs a script, by digest if the server knows it.
func (s oomScripter) Eval(ctx context.Context, script string, keys []string, args ...any) *redis.Cmd {
	return redis.NewScript("#!lua flags=allow-oom\n"+script).Run(ctx, s.Scripter, keys, args...)
}

// EvalSha reports the digest as unknown, which makes redis.Script call Eval.
func (s oomScripter) EvalSha(ctx context.Context, sha string, keys []string, _ ...any) *redis.Cmd {
	cmd := redis.NewCmd(ctx, "evalsha", sha, len(keys))
	cmd.SetErr(errNoScript)
	return cmd
}

var errNoScript = noScript("NOSCRIPT scripts run with allow-oom have another digest")

// noScript is the NOSCRIPT reply of a server.
type noScript string

func (e noScript) Error() string { return string(e) }

// RedisError implements redis.Error.
func (noScript) RedisError() {}
