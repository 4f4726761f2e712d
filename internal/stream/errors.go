package stream

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
)

// failure translates an error of the client or of the server. The server's
// errors begin with a code word; only that word is compared, since the rest of
// the sentence differs between versions.
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
		// The connection broke or never was: whether the command ran is open.
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
		f.Err = fmt.Errorf("%s: the key holds something else than a stream; check REDIS_TELEMETRY_STREAM: %w", op, err)
	case "NOPERM", "NOAUTH", "WRONGPASS":
		f.Kind = protocol.Misconfigured
		f.Err = fmt.Errorf("%s: Redis refuses this user; check REDIS_URL and the ACL: %w", op, err)
	case "OOM":
		f.Err = fmt.Errorf("%s: Redis is full; raise maxmemory or trim the stream: %w", op, err)
	}
	return f
}

// serverError is an error reply found in a raw reply.
type serverError string

func (e serverError) Error() string { return string(e) }

// RedisError marks it as an answer of the server for the client library.
func (serverError) RedisError() {}
