package stream

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
)

// Failure is failure for the packages below this one.
func Failure(op string, err error) error { return failure(op, err) }

// failure translates an error of the client or the server. A server's error
// begins with a code word; only that is compared, since the text differs
// between versions.
func failure(op string, err error) error {
	if err == nil {
		return nil
	}
	wrapped := fmt.Errorf("%s: %w", op, err)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &protocol.Failure{Kind: protocol.Unknown, Err: wrapped}
	}
	var known *protocol.Failure
	if errors.As(err, &known) {
		return err
	}
	if _, ok := errors.AsType[redis.Error](err); !ok {
		// The connection broke or failed to open: it is unknown whether the
		// command ran.
		return &protocol.Failure{Kind: protocol.Unknown, Err: wrapped}
	}
	code, _, _ := strings.Cut(err.Error(), " ")
	f := &protocol.Failure{Kind: protocol.Unavailable, Code: code, Err: wrapped}
	switch code {
	case "NOGROUP":
		f.Kind = protocol.Lost
	case "UNBLOCKED":
		f.Kind = protocol.Lost
	case "WRONGTYPE":
		f.Kind = protocol.Misconfigured
		f.Err = fmt.Errorf("%s: the key is not a stream; check REDIS_TELEMETRY_STREAM: %w", op, err)
		if strings.Contains(err.Error(), "script: ") { // what a script looks at first is the stream, and it says so itself
			f.Err = fmt.Errorf("%s: the key of REDIS_TELEMETRY_STREAM or one that the group keeps for it, {STREAM}:GROUP:…, is of another type; find it with TYPE and rename it: %w", op, err)
		}
	case "NOPERM", "NOAUTH", "WRONGPASS":
		f.Kind = protocol.Misconfigured
		f.Err = fmt.Errorf("%s: Redis rejects this user; check REDIS_URL and the ACL: %w", op, err)
	case "READONLY":
		f.Err = fmt.Errorf("%s: this Redis is a replica and accepts no writes; REDIS_URL must lead to the master: %w", op, err)
	case "NOREPLICAS":
		f.Err = fmt.Errorf("%s: Redis has fewer replicas than its min-replicas-to-write and accepts no writes: %w", op, err)
	case "OOM":
		f.Err = fmt.Errorf("%s: Redis is full; raise maxmemory or trim the stream: %w", op, err)
	}
	return f
}

// serverError is an error reply found in a raw reply.
type serverError string

func (e serverError) Error() string { return string(e) }

// RedisError implements redis.Error.
func (serverError) RedisError() {}
