package stream

import (
	"bufio"
	"context"
	_ "embed"
	"strconv"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

//go:embed deadletter_restore.lua
var restoreSource string

var restoreScript = withPrelude(restoreSource)

// DeadLetterName returns the field of the hash of dead-lettered entries under which
// deadletter.lua keeps the ID of an entry's dead letter.
func DeadLetterName(entry, digest string) string { return entry + " " + digest }

// Known returns the ID of each entry's dead letter, zero where the server
// remembers none. It stays known after the letter was replayed, dropped or archived.
func (d *DeadLetters) Known(ctx context.Context, refs []telemetry.Ref) ([]telemetry.EntryID, error) {
	const op = "look for dead letters"
	if len(refs) == 0 {
		return nil, nil
	}
	names := make([]string, len(refs))
	for i, r := range refs {
		names[i] = DeadLetterName(r.ID.String(), r.Digest)
	}
	values, err := d.client.HMGet(ctx, d.names.DeadLettered(), names...).Result()
	if err != nil {
		return nil, failure(op, err)
	}
	ids := make([]telemetry.EntryID, len(refs))
	for i, v := range values {
		text, ok := v.(string)
		if !ok {
			continue
		}
		if ids[i], err = telemetry.ParseEntryID(text); err != nil {
			return nil, failure(op, err)
		}
	}
	return ids, nil
}

// Restore adds a dead letter again that the server does not know. Doing it
// again, or at the same time as the owner of its shard, adds it once.
func (d *DeadLetters) Restore(ctx context.Context, l *protocol.Unconfirmed) (protocol.Restored, error) {
	fields := EncodeDeadLetter(&l.DeadLetter)
	args := make([]any, 0, 5+len(fields))
	args = append(args, d.names.Group, l.Entry.ID.String(), l.Entry.Digest(), flag(l.Queued), flag(l.Added))
	for i := range fields {
		args = append(args, &fields[i])
	}
	text, err := restoreScript.Run(ctx, d.client, []string{d.names.Stream, d.stream, d.names.DeadLettered(), d.names.Pending()}, args...).Text()
	return protocol.Restored(text), d.failure("add dead letter of "+l.Entry.ID.String()+" again", err)
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return ""
}

const (
	// syncedAfter is when an append-only file that is synced every second has
	// certainly synced a write: the server delays writes while a sync is slow.
	syncedAfter = 15 * time.Second
	// marksKept bounds the samples of the replication's progress.
	marksKept = 32
)

// replicated is the replication offset at a time of the server's clock.
type replicated struct {
	at     telemetry.EntryID
	offset int64
}

// Durable returns an ID before which dead letters survive a failover: the
// append-only file or a snapshot holds them, and so does every connected
// replica. It is zero while nothing is known to be durable. Times are the
// server's, whose clock gave the IDs.
func (d *DeadLetters) Durable(ctx context.Context) (telemetry.EntryID, error) {
	const op = "ask Redis what is durable"
	node, err := d.Node(ctx)
	if err != nil {
		return telemetry.EntryID{}, d.failure(op, err)
	}
	pipe := node.Pipeline()
	now, about := pipe.Time(ctx), pipe.Info(ctx)
	if _, err := pipe.Exec(ctx); err != nil {
		return telemetry.EntryID{}, failure(op, err)
	}
	info := make(map[string]string)
	for lines := bufio.NewScanner(strings.NewReader(about.Val())); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok {
			info[name] = value
		}
	}
	return d.durable(now.Val(), info), nil
}

func (d *DeadLetters) durable(now time.Time, info map[string]string) telemetry.EntryID {
	number := func(name string) int64 {
		n, _ := strconv.ParseInt(info[name], 10, 64) // 0 if it is missing
		return n
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if info["run_id"] != d.server {
		d.server, d.marks, d.saved, d.savedBefore = info["run_id"], nil, 0, 0
	}
	// A snapshot holds the state at the time it began, which is after the end of the one before.
	// What the server says it took may be of another one, that failed or went to a replica.
	if saved := number("rdb_last_save_time"); saved > d.saved {
		d.saved, d.savedBefore = saved, d.saved
	}
	var until telemetry.EntryID
	switch {
	case info["loading"] == "1":
		return until
	case info["aof_enabled"] == "1":
		// Where it was enabled at run time there is no file that a restart reads before it was
		// rewritten once; whether this is the first time, the server does not say.
		if info["aof_last_write_status"] != "ok" || info["aof_last_bgrewrite_status"] == "err" ||
			info["aof_rewrite_in_progress"] == "1" || info["aof_rewrite_scheduled"] == "1" {
			return until
		}
		until = idAt(now.Add(-syncedAfter))
	case d.savedBefore > 0:
		until = idAt(time.Unix(d.savedBefore, 0))
	}
	d.marks = append(d.marks, replicated{at: idAt(now), offset: number("master_repl_offset")})
	if len(d.marks) > marksKept {
		d.marks = append(d.marks[:0], d.marks[1:]...)
	}
	for i := range number("connected_slaves") {
		has := int64(-1)
		for field := range strings.SplitSeq(info["slave"+strconv.FormatInt(i, 10)], ",") {
			if text, ok := strings.CutPrefix(field, "offset="); ok {
				has, _ = strconv.ParseInt(text, 10, 64) // 0, which confirms nothing
			}
		}
		var at telemetry.EntryID
		for _, m := range d.marks {
			if m.offset <= has {
				at = m.at
			}
		}
		if at.Less(until) {
			until = at
		}
	}
	return until
}

func idAt(t time.Time) telemetry.EntryID {
	return telemetry.EntryID{Ms: uint64(max(0, t.UnixMilli()))}
}
