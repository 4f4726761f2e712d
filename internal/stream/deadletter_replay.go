package stream

import (
	"context"
	_ "embed"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/telemetry"
)

//go:embed deadletter_replay.lua
var replaySource string

//go:embed deadletter_forget.lua
var forgetDeadLetteredSource string

var (
	replayScript             = redis.NewScript(replaySource)
	forgetDeadLetteredScript = redis.NewScript(forgetDeadLetteredSource)
)

// ReplayFields returns the fields that a dead letter is replayed with: its own
// or the edited ones, and its lineage: the source entry whose stream time the
// record keeps, the dead letter itself, and the attempts until then. The replay of
// a replay names the first source.
func ReplayFields(l *telemetry.DeadLetter, letter telemetry.EntryID, edited []string) []string {
	e := telemetry.Entry{Fields: slices.Clone(l.Entry.Fields)}
	if edited != nil {
		e.Fields = slices.Clone(edited)
	}
	of := l.Entry.ID.String()
	if first, ok := l.Entry.Field(telemetry.FieldReplayOf); ok {
		of = first
	}
	if own, ok := e.Field(telemetry.FieldReplayOf); ok {
		of = own
	}
	for _, f := range [][2]string{
		{telemetry.FieldReplayOf, of}, {telemetry.FieldReplayLetter, letter.String()}, {telemetry.FieldReplayAttempts, strconv.Itoa(l.Attempts)},
	} {
		e.Set(f[0], f[1])
	}
	return e.Fields
}

// Replay adds an entry with these fields to the source stream and removes the
// dead letter, in one step. It returns false if the dead letter does not exist.
func (d *DeadLetters) Replay(ctx context.Context, id telemetry.EntryID, fields []string) (telemetry.EntryID, bool, error) {
	if len(fields) > widest {
		return telemetry.EntryID{}, false, fmt.Errorf("replay dead letter %s: it has %d fields, a script takes at most %d; edit it", id, len(fields)/2, widest/2)
	}
	args := make([]any, 0, 1+len(fields))
	args = append(args, id.String())
	for i := range fields {
		args = append(args, &fields[i])
	}
	text, err := replayScript.Run(ctx, d.client, []string{d.names.Stream, d.stream}, args...).Text()
	if err != nil {
		return telemetry.EntryID{}, false, d.failure("replay dead letter "+id.String(), err)
	}
	if text == "" {
		return telemetry.EntryID{}, false, nil
	}
	as, err := telemetry.ParseEntryID(text)
	return as, true, d.failure("replay dead letter "+id.String(), err)
}

// ForgetDeadLettered removes one page of the record of dead-lettered entries:
// those whose dead letter is older than an ID and whose own content was trimmed
// from the source stream, so that they cannot be delivered again. The cursor it
// returns begins the next page; 0 is the end.
func (d *DeadLetters) ForgetDeadLettered(ctx context.Context, before telemetry.EntryID, cursor uint64) (forgotten int, next uint64, err error) {
	const op = "forget dead-lettered entries"
	first, err := d.client.XRangeN(ctx, d.names.Stream, "-", "+", 1).Result()
	if err != nil {
		return 0, 0, failure(op, err)
	}
	oldest := telemetry.MaxEntryID // an empty stream delivers nothing
	if len(first) > 0 {
		if oldest, err = telemetry.ParseEntryID(first[0].ID); err != nil {
			return 0, 0, failure(op, err)
		}
	}
	pairs, next, err := d.client.HScan(ctx, d.names.DeadLettered(), cursor, "", 1000).Result()
	if err != nil {
		return 0, 0, failure(op, err)
	}
	var args []any
	for i := 0; i+1 < len(pairs); i += 2 {
		text, _, _ := strings.Cut(pairs[i], " ") // source ID, digest
		source, err := telemetry.ParseEntryID(text)
		if err != nil {
			return 0, 0, failure(op, err)
		}
		id, err := telemetry.ParseEntryID(pairs[i+1])
		if err != nil {
			return 0, 0, failure(op, err)
		}
		if id.Less(before) && source.Less(oldest) {
			args = append(args, pairs[i], pairs[i+1])
		}
	}
	if len(args) == 0 {
		return 0, next, nil
	}
	forgotten, err = forgetDeadLetteredScript.Run(ctx, d.client, []string{d.names.DeadLettered()}, args...).Int()
	return forgotten, next, failure(op, err)
}
