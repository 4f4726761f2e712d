package stream

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

//go:embed deadletter.lua
var deadLetterSource string

var deadLetterScript = withPrelude(deadLetterSource)

// DeadLetters is the stream of dead letters of one group. It is safe for
// concurrent use.
type DeadLetters struct {
	client redis.UniversalClient
	names  Names
	stream string

	pace readPace

	mu     sync.Mutex
	server string       // run ID of the server that marks belong to
	marks  []replicated // oldest first

	saved, savedBefore int64 // Unix times of the ends of its last two snapshots; 0 for one not seen
}

// NewDeadLetters returns the dead letters of cfg's group, stored in the stream
// dlq. It makes no call.
func NewDeadLetters(client redis.UniversalClient, cfg Config, dlq string) (*DeadLetters, error) {
	if cfg.Stream == "" || cfg.Group == "" || dlq == "" || dlq == cfg.Stream {
		return nil, fmt.Errorf("dead letters of stream %q, group %q in stream %q: all three are needed, and two streams", cfg.Stream, cfg.Group, dlq)
	}
	return &DeadLetters{client: client, names: Names{Stream: cfg.Stream, Group: cfg.Group}, stream: dlq, pace: readPace{key: dlq}}, nil
}

// failure is failure with the remedies for the dead-letter stream.
func (d *DeadLetters) failure(op string, err error) error {
	if _, known := errors.AsType[*protocol.Failure](err); err == nil || known {
		return err
	}
	translated := failure(op, err)
	f, _ := errors.AsType[*protocol.Failure](translated)
	switch f.Code {
	case "WRONGTYPE":
		f.Err = fmt.Errorf("%s: the key %s is not a stream; rename it, or correct REDIS_DLQ_STREAM: %w", op, d.stream, err)
	case "NOPERM":
		f.Err = fmt.Errorf("%s: Redis rejects this user; let it write to %s (deploy/security/redis.sh), or correct REDIS_DLQ_STREAM: %w", op, d.stream, err)
	}
	return translated
}

// Stream returns the name of the dead-letter stream.
func (d *DeadLetters) Stream() string { return d.stream }

// DeadLetter moves entries from the queues of their shards, owned under these
// tokens, to the dead-letter stream, acknowledges them and notes in each letter that it
// is there, whatever the error says of others. It is idempotent. An
// entry that is not pending on its shard's queue is skipped, and the error is a
// Failure of kind Lost that names its shard: that queue must be read again. Its code is protocol.Unqueued
// if none is missing, and those that are unqueued are to be put on their queues first.
// Entries of a shard that was acquired under another token since are skipped,
// too; then the Failure is of kind Fenced and names all shards with skipped
// entries. After any error the call may be repeated.
func (d *DeadLetters) DeadLetter(ctx context.Context, letters []telemetry.DeadLetter, tokens map[int]string) error {
	return d.moveToDLQ(ctx, letters, tokens, true)
}

// DeadLetterDeferred does the same for entries that were acknowledged when they
// were deferred, and so are not pending.
func (d *DeadLetters) DeadLetterDeferred(ctx context.Context, letters []telemetry.DeadLetter, tokens map[int]string) error {
	return d.moveToDLQ(ctx, letters, tokens, false)
}

// dlqBatchBytes bounds the bytes of one round trip.
const dlqBatchBytes = 4 << 20

func (d *DeadLetters) moveToDLQ(ctx context.Context, letters []telemetry.DeadLetter, tokens map[int]string, pending bool) error {
	var absent, unqueued, stale []int
	for len(letters) > 0 {
		n, bytes := 0, 0
		for n < len(letters) && (n == 0 || bytes < dlqBatchBytes) {
			bytes += letters[n].Entry.Size()
			n++
		}
		replies, err := d.moveSomeToDLQ(ctx, letters[:n], tokens, pending)
		if err != nil {
			return d.failure("move to the dead letters in "+d.stream, err)
		}
		for i, reply := range replies {
			switch reply {
			case "absent":
				absent = append(absent, letters[i].Shard)
			case "unqueued":
				unqueued = append(unqueued, letters[i].Shard)
			case "stale":
				stale = append(stale, letters[i].Shard)
			}
		}
		letters = letters[n:]
	}
	switch {
	case len(stale) > 0:
		return &protocol.Failure{
			Kind: protocol.Fenced, Code: "token", Shards: sortedUnique(slices.Concat(stale, absent, unqueued)),
			Err: fmt.Errorf("move to the dead letters: shards %v were reacquired, or their tokens are lost", sortedUnique(stale)),
		}
	case len(absent) > 0:
		return &protocol.Failure{
			Kind: protocol.Lost, Code: "absent", Shards: sortedUnique(slices.Concat(absent, unqueued)),
			Err: errors.New("move to the dead letters: an entry is not pending on its queue any more; the queue is read again"),
		}
	case len(unqueued) > 0:
		return &protocol.Failure{
			Kind: protocol.Lost, Code: protocol.Unqueued, Shards: sortedUnique(unqueued),
			Err: errors.New("move to the dead letters: an entry is on no queue; it is put on its queue first"),
		}
	}
	return nil
}

// sortedUnique returns the numbers in ascending order, each once.
func sortedUnique(list []int) []int {
	slices.Sort(list)
	return slices.Compact(list)
}

// moveSomeToDLQ makes one round trip, and a second one if the server does not
// have the script yet. It returns the script's answer for each.
func (d *DeadLetters) moveSomeToDLQ(ctx context.Context, letters []telemetry.DeadLetter, tokens map[int]string, pending bool) ([]string, error) {
	cmds := make([]*redis.Cmd, len(letters))
	send := func() error {
		pipe := d.client.Pipeline()
		for i := range letters {
			cmds[i] = deadLetterScript.EvalSha(ctx, pipe, d.keys(), d.arguments(&letters[i], tokens[letters[i].Shard], pending)...)
		}
		_, err := pipe.Exec(ctx)
		return err
	}
	err := send()
	if err != nil && strings.HasPrefix(err.Error(), "NOSCRIPT") {
		if err = deadLetterScript.Load(ctx, d.client).Err(); err == nil {
			err = send() // what the first one moved is answered as known
		}
	}
	replies := make([]string, len(cmds))
	for i, cmd := range cmds {
		res, failed := cmd.StringSlice()
		if failed != nil {
			err = cmp.Or(err, failed)
			continue
		}
		replies[i] = res[0]
		letters[i].Moved = letters[i].Moved || res[0] == "moved" || res[0] == "known"
	}
	return replies, err
}

func (d *DeadLetters) keys() []string {
	return []string{d.names.Stream, d.stream, d.names.DeadLettered(), d.names.OwnerTokens(), d.names.Pending()}
}

func (d *DeadLetters) arguments(l *telemetry.DeadLetter, token string, pending bool) []any {
	consumer := ""
	if pending {
		consumer = Consumer(l.Shard)
	}
	fields := EncodeDeadLetter(l)
	unqueued := "0"
	if l.Unqueued {
		unqueued = "1"
	}
	args := make([]any, 0, 7+len(fields))
	args = append(args, d.names.Group, consumer, l.Entry.ID.String(), l.Entry.Digest(), l.Shard, token, unqueued)
	for i := range fields {
		args = append(args, &fields[i])
	}
	return args
}
