package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Writer commits batches for one member of one group.
type Writer struct {
	pool       *pgxpool.Pool
	scope      Scope
	member     string
	timeout    time.Duration
	heaps      *heaps
	generation *ServerGeneration // of the pool; nil where nobody minds
	streams    sync.Pool         // of *copyStream
	triggers   *known[triggers]
}

// NewWriter returns a writer for a member. The timeout bounds one whole
// transaction; it exceeds the server's statement timeout, so that the server
// reports first.
func NewWriter(pool *pgxpool.Pool, scope Scope, member string, timeout time.Duration) *Writer {
	return &Writer{
		pool: pool, scope: scope, member: member, timeout: timeout, heaps: newHeaps(pool), triggers: newKnown[triggers](),
		streams: sync.Pool{New: func() any { return new(copyStream) }},
	}
}

// Guard makes the writer reject batches that were computed for another server
// generation.
func (w *Writer) Guard(runs *ServerGeneration) { w.generation = runs }

// Generation returns the number of server generations seen.
func (w *Writer) Generation() uint64 {
	if w.generation == nil {
		return 0
	}
	return w.generation.Number()
}

// Write commits one batch in one transaction that ends with the epoch check.
// After an error of kind Unknown it may have been committed; after any other,
// nothing was, as where it took too long and the commit was not sent yet. One that is Blocked names the shards whose rows another session has
// locked, none if that is not what it waited for.
func (w *Writer) Write(ctx context.Context, b *protocol.Batch) (protocol.CommitResult, error) {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	// Before there is a connection: who holds one does not wait for another.
	if err := w.heaps.makeChunks(ctx, b.Fresh, b.Late); err != nil {
		return protocol.CommitResult{}, failure("commit a batch", err)
	}
	var c cuts
	if len(b.Late)+len(b.Rivals)+len(b.Undecided) > 0 && b.Rules.Fences.Len() > 0 {
		var err error
		if c, err = w.heaps.now(ctx); err != nil {
			return protocol.CommitResult{}, failure("commit a batch", err)
		}
	}
	conn, err := w.pool.Acquire(ctx)
	if err != nil {
		// No connection: nothing was sent.
		return protocol.CommitResult{}, &protocol.Failure{Kind: protocol.Unavailable, Err: fmt.Errorf("acquire a connection: %w", err)}
	}
	defer conn.Release()
	if generation := w.Generation(); generation != b.ServerGeneration {
		rare.Reached(rare.GenerationChanged)
		return protocol.CommitResult{}, &protocol.Failure{Kind: protocol.Unavailable, Err: errServerGenerationChanged}
	}
	sent := false
	out, err := w.write(ctx, conn.Conn(), c, b, &sent)
	if err != nil {
		w.rollBack(ctx, conn.Conn())
		err = failure("commit a batch", err)
		if f, ok := errors.AsType[*protocol.Failure](err); ok {
			if !sent && f.Kind == protocol.Unknown && f.TooMuch {
				f.Kind, f.Message = protocol.Unavailable, "the transaction took too long"
			}
			if f.Blocked {
				f.Shards = w.lockedShards(ctx, conn.Conn(), b.Leases)
			}
		}
		return protocol.CommitResult{}, err
	}
	return out, nil
}

// lockWait is how long a commit waits for the rows of its shards.
func (w *Writer) lockWait() int64 { return min(ShardLockWait, w.timeout/4).Milliseconds() }

// lockedShards returns those shards whose rows another session has locked, none if
// that is not known. The caller's transaction has ended.
func (w *Writer) lockedShards(ctx context.Context, conn *pgx.Conn, held []protocol.ShardLease) (locked []int) {
	shards := make([]int32, len(held))
	for i, h := range held {
		shards[i] = int32(h.Shard)
	}
	rows, err := conn.Query(ctx, `
select shard
from processor.shards
where stream = $1
  and group_name = $2
  and shard = any ($3)
for share skip locked`, w.scope.Stream, w.scope.Group, shards)
	if err != nil {
		return nil
	}
	free, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		return nil
	}
	for _, shard := range shards {
		if !slices.Contains(free, shard) {
			locked = append(locked, int(shard))
		}
	}
	return locked
}

// write tells when it sends the commit: until then nothing can be committed.
func (w *Writer) write(ctx context.Context, conn *pgx.Conn, c cuts, b *protocol.Batch, sent *bool) (protocol.CommitResult, error) {
	var out protocol.CommitResult
	triggers, err := w.insertTriggers(ctx, conn)
	if err != nil {
		return out, err
	}
	if triggers.before == "" && !triggers.deferred && len(b.Late) == 0 && len(b.Rivals) == 0 && len(b.Applied) == 0 && len(b.Crossings) == 0 && len(b.Undecided) == 0 && len(b.Deferred) == 0 && len(b.Resolved) == 0 && len(b.Letters) == 0 && len(b.Devices) == 0 {
		// Begin, copy, checks and commit share one round trip.
		*sent = true
		_, err := w.copy(ctx, conn.PgConn(), b.Fresh, fmt.Sprintf("; set local lock_timeout = %d; select %s; commit", w.lockWait(), w.checks(b)), "COMMIT")
		return out, err
	}
	out.Triggers = triggers.before
	rest := &pgx.Batch{}
	if len(b.Fresh) > 0 || len(b.Letters) > 0 { // even of nothing: where positions takes no statement, no row is at fault
		stored, err := w.copy(ctx, conn.PgConn(), b.Fresh, "", "COPY")
		if err != nil {
			return out, err
		}
		out.Swallowed = len(b.Fresh) - int(stored)
	} else {
		rest.Queue("begin")
	}
	if len(b.Crossings) > 0 {
		queueCrossings(rest, b.Crossings, b.Rules.Fences)
	}
	if len(b.Late)+len(b.Rivals)+len(b.Undecided) > 0 {
		if len(b.Late) > 0 {
			out.Stored = make([]bool, len(b.Late), len(b.Late)+len(b.Rivals))
			queueLate(rest, b.Late, out.Stored)
		}
		if b.Rules.Fences.Len() > 0 {
			// The session is idle while others look for what lies far, each for as long as a
			// statement may take, and all together for as long as the transaction may.
			rest.Queue("select set_config('idle_in_transaction_session_timeout', $1, true)", strconv.FormatInt(w.timeout.Milliseconds(), 10))
		}
		if len(b.Late)+len(b.Rivals) > 0 {
			rest.Queue("savepoint " + savepoint)
		}
		// What was new is known only now; a later statement sees it.
		if rest.Len() > 0 {
			if err := conn.SendBatch(ctx, rest).Close(); err != nil {
				return out, err
			}
			rest = &pgx.Batch{}
		}
		records := append(slices.Clip(b.Late), b.Rivals...)
		out.Stored = append(out.Stored, make([]bool, len(b.Rivals))...)
		certain := len(b.Late) // rivals that win are the state of their device
		if b.Idempotent {
			certain = len(records)
		}
		lost, err := settle(ctx, conn, w.scope, records, out.Stored, certain, b.Rules, &out)
		if err != nil {
			return out, err
		}
		if len(records) > 0 {
			rest.Queue("release savepoint " + savepoint) // what follows is no subtransaction
		}
		if b.Rules.Fences.Len() > 0 {
			list := windows(records, out.Stored, lost, undecided(b), b.Rules)
			found, err := tracks(c, list, b.Rules, inTx(ctx, conn), byItself(ctx, w.pool, w.timeout), b.Fresh, heldLimit)
			if err != nil {
				return out, err
			}
			for i := range found {
				out.Jumps += found[i].jumps
				if d := found[i].derived; d != nil && d.Left {
					queueRest(rest, w.scope, telemetry.ShardOf(list[i].device, b.Shards), list[i], w.member)
				}
			}
			out.Corrected, err = recompute(ctx, conn, list, found, b.Rules, rest)
			if err != nil {
				return out, err
			}
		}
	}
	if triggers.deferred && len(b.Fresh)+len(b.Late)+len(b.Rivals) > 0 {
		// The server bounds no time at a commit, and one that was sent may have happened.
		if _, err := conn.Exec(ctx, dueNow); err != nil {
			return out, failureOfRows("check what is deferred on positions", err)
		}
	}
	if len(b.Devices) > 0 {
		rest.Queue(registerSQL, w.scope.Stream, b.Devices)
	}
	w.queueDeferred(rest, b.Deferred)
	w.queueLetters(rest, b.Letters)
	if len(b.Resolved) > 0 {
		queueForget(rest, w.scope, b.Resolved)
	}
	if len(b.Applied) > 0 {
		queueApplied(rest, w.scope, b.Applied)
	}
	rest.Queue("select set_config('lock_timeout', $1, true)", strconv.FormatInt(w.lockWait(), 10))
	rest.Queue("select processor.check_fences($1)", b.Rules.Fences.Version)
	w.queueFence(rest, b.Leases)
	rest.Queue("commit").Exec(committed)
	*sent = true
	return out, conn.SendBatch(ctx, rest).Close()
}

// dueNow does what is due at the end of a transaction.
const dueNow = "set constraints all immediate"

// copy begins a transaction and copies records into positions. What is to
// follow in the same round trip is given as SQL; want is the tag of its last command,
// whose rows are returned.
func (w *Writer) copy(ctx context.Context, conn *pgconn.PgConn, records []telemetry.Record, then, want string) (int64, error) {
	rows := w.streams.Get().(*copyStream)
	rows.encode(records)
	sql := "begin; copy public.positions (" + positionColumns + ") from stdin (format binary)" + then
	tag, err := conn.CopyFrom(ctx, bytes.NewReader(rows.bytes), sql)
	if err != nil {
		// The driver does not wait for its reader of the buffer when the
		// connection breaks, so this buffer must not be reused.
		translate := failureOfRows
		if len(records) == 0 {
			translate = failure
		}
		err = translate("copy", err)
		if f, ok := errors.AsType[*protocol.Failure](err); ok {
			f.Row = rows.record(f.Row)
		}
		return 0, err
	}
	w.streams.Put(rows)
	if got, _, _ := strings.Cut(tag.String(), " "); got != want {
		return 0, notCommitted(tag)
	}
	return tag.RowsAffected(), nil
}

// committed verifies the server's answer: COMMIT in a failed transaction
// answers ROLLBACK, without an error.
func committed(tag pgconn.CommandTag) error {
	if tag.String() != "COMMIT" {
		return notCommitted(tag)
	}
	return nil
}

func notCommitted(tag pgconn.CommandTag) error {
	return &protocol.Failure{
		Kind: protocol.Unavailable, Code: tag.String(),
		Err: fmt.Errorf("the server answered %q instead of committing", tag.String()),
	}
}

// rollBack leaves the connection fit for the pool, or closed.
func (w *Writer) rollBack(ctx context.Context, conn *pgx.Conn) {
	if conn.IsClosed() || conn.PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), 2*time.Second, errors.New("roll back within 2s"))
	defer cancel()
	if _, err := conn.Exec(ctx, "rollback"); err != nil {
		_ = conn.Close(ctx) // the server rolls back when the connection closes
	}
}

// lateSQL keeps what is there, see settle; of two records of a device and time in
// the arrays the first is inserted.
const lateSQL = `
insert into public.positions (` + positionColumns + `)
select r.device_id, r.ts, r.ingested_at, r.latitude, r.longitude,
  r.altitude, r.angle, r.speed, r.satellites, r.priority, r.codec, r.attributes::jsonb
from unnest($1::text[], $2::timestamptz[], $3::timestamptz[], $4::float8[], $5::float8[],
  $6::float4[], $7::float4[], $8::float4[], $9::int2[], $10::int2[], $11::text[], $12::text[])
  with ordinality as r (device_id, ts, ingested_at, latitude, longitude,
    altitude, angle, speed, satellites, priority, codec, attributes, n)
order by r.n
on conflict (device_id, ts) do nothing
returning device_id, ts`

// key identifies a position.
type key struct {
	device string
	us     int64
}

func queueLate(batch *pgx.Batch, records []telemetry.Record, stored []bool) {
	first := make(map[key]int, len(records))
	for i := range records {
		k := key{records[i].DeviceID, records[i].TimeUS}
		if _, ok := first[k]; !ok {
			first[k] = i
		}
	}
	batch.Queue(lateSQL, columnsOf(records)...).
		Query(func(rows pgx.Rows) error {
			for rows.Next() {
				var device string
				var at time.Time
				if err := rows.Scan(&device, &at); err != nil {
					return err
				}
				stored[first[key{device, at.UnixMicro()}]] = true
			}
			return failureOfRows("insert into positions", rows.Err())
		})
}

func queueApplied(batch *pgx.Batch, scope Scope, marks []protocol.Applied) {
	shards, ids := make([]int32, len(marks)), make([]string, len(marks))
	for i, m := range marks {
		shards[i], ids[i] = int32(m.Shard), m.ID.String()
	}
	batch.Queue(`
insert into processor.progress as p (stream, group_name, shard, applied_id)
select $1, $2, m.shard, m.id
from unnest($3::int[], $4::text[]) as m (shard, id)
on conflict (stream, group_name, shard) do update
set applied_id = excluded.applied_id,
  updated_at = now()`, scope.Stream, scope.Group, shards, ids)
}

func (w *Writer) queueFence(batch *pgx.Batch, held []protocol.ShardLease) {
	if mutantUnfenced() {
		return
	}
	shards, epochs := make([]int32, len(held)), make([]int64, len(held))
	for i, h := range held {
		shards[i], epochs[i] = int32(h.Shard), h.Epoch
	}
	batch.Queue("select processor.fence($1, $2, $3::int[], $4::bigint[], $5)",
		w.scope.Stream, w.scope.Group, shards, epochs, w.member)
}

// checks returns both checks as literal SQL, for the single round trip.
func (w *Writer) checks(batch *protocol.Batch) string {
	held := batch.Leases
	b := make([]byte, 0, 160+24*len(held))
	b = append(b, "processor.check_fences("...)
	b = strconv.AppendInt(b, batch.Rules.Fences.Version, 10)
	if mutantUnfenced() {
		return string(append(b, ')'))
	}
	b = append(b, "), processor.fence("...)
	b = appendLiteral(b, w.scope.Stream)
	b = append(b, ", "...)
	b = appendLiteral(b, w.scope.Group)
	b = append(b, ", '{"...)
	for i, h := range held {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, int64(h.Shard), 10)
	}
	b = append(b, "}', '{"...)
	for i, h := range held {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, h.Epoch, 10)
	}
	b = append(b, "}', "...)
	b = appendLiteral(b, w.member)
	return string(append(b, ')'))
}

// appendLiteral appends s as an SQL string literal that no server setting
// interprets differently.
func appendLiteral(dst []byte, s string) []byte {
	dst = append(dst, " e'"...)
	for i := range len(s) {
		switch s[i] {
		case '\'', '\\':
			dst = append(dst, '\\', s[i])
		default:
			dst = append(dst, s[i])
		}
	}
	return append(dst, '\'')
}
