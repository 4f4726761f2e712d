package stream

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Our fields in a dead letter. They follow the original ones, and the last one
// gives the number of those. So an original field cannot be mistaken for ours,
// whatever its name, and a reader that makes a map of the fields sees ours.
const (
	fieldClass       = "dlq_class"
	fieldError       = "dlq_error"
	fieldField       = "dlq_field"
	fieldSourceID    = "dlq_source_id"
	fieldShard       = "dlq_shard"
	fieldAttempts    = "dlq_attempts"
	fieldFirstFailed = "dlq_first_failed"
	fieldLastFailed  = "dlq_last_failed"
	fieldInstance    = "dlq_instance"
	fieldVersion     = "dlq_version"
	fieldFingerprint = "dlq_fingerprint"
	// fieldPacked holds the original fields of an entry that has too many of
	// them for a script, each as its length, a colon and its bytes.
	fieldPacked = "dlq_packed_fields"
	// fieldOriginal is the number of original fields that precede ours.
	fieldOriginal = "dlq_original_fields"
)

// widest is the maximum number of an entry's strings that are passed as script
// arguments: Lua's stack holds about 8,000.
const widest = 6000

// timeFormat keeps microseconds, as the tables do.
const timeFormat = "2006-01-02T15:04:05.000000Z07:00"

// EncodeDeadLetter returns the fields of a dead letter in its stream.
func EncodeDeadLetter(l *telemetry.DeadLetter) []string {
	fields := make([]string, 0, len(l.Entry.Fields)+26)
	original := len(l.Entry.Fields) / 2
	if len(l.Entry.Fields) <= widest {
		fields = append(fields, l.Entry.Fields...)
	} else {
		original = 0
		fields = append(fields, fieldPacked, pack(l.Entry.Fields))
	}
	return append(fields,
		fieldClass, string(l.Class),
		fieldError, l.Error,
		fieldField, l.Field,
		fieldSourceID, l.Entry.ID.String(),
		fieldShard, strconv.Itoa(l.Shard),
		fieldAttempts, strconv.Itoa(l.Attempts),
		fieldFirstFailed, l.FirstFailed.UTC().Format(timeFormat),
		fieldLastFailed, l.LastFailed.UTC().Format(timeFormat),
		fieldInstance, l.Instance,
		fieldVersion, l.Version,
		fieldFingerprint, l.Fingerprint,
		fieldOriginal, strconv.Itoa(original))
}

// errNotOurs marks an entry of the dead-letter stream that this service did not
// write.
var errNotOurs = errors.New("it lacks the fields of a dead letter")

func decodeDeadLetter(fields []string) (telemetry.DeadLetter, error) {
	var l telemetry.DeadLetter
	n := len(fields)
	if n < 2 || fields[n-2] != fieldOriginal {
		return l, errNotOurs
	}
	original, err := strconv.Atoi(fields[n-1])
	if err != nil || original < 0 || original > (n-2)/2 {
		return l, errNotOurs
	}
	l.Entry.Fields = fields[:2*original]
	for i := 2 * original; i+1 < n-2; i += 2 {
		value := fields[i+1]
		switch fields[i] {
		case fieldClass:
			l.Class = telemetry.Class(value)
		case fieldError:
			l.Error = value
		case fieldField:
			l.Field = value
		case fieldSourceID:
			l.Entry.ID, err = telemetry.ParseEntryID(value)
		case fieldShard:
			l.Shard, err = strconv.Atoi(value)
		case fieldAttempts:
			l.Attempts, err = strconv.Atoi(value)
		case fieldFirstFailed:
			l.FirstFailed, err = time.Parse(timeFormat, value)
		case fieldLastFailed:
			l.LastFailed, err = time.Parse(timeFormat, value)
		case fieldInstance:
			l.Instance = value
		case fieldVersion:
			l.Version = value
		case fieldFingerprint:
			l.Fingerprint = value
		case fieldPacked:
			l.Entry.Fields, err = unpack(value)
		}
		if err != nil {
			return l, fmt.Errorf("%s: %w", fields[i], err)
		}
	}
	if l.Entry.ID.IsZero() || l.Class == "" {
		return l, errNotOurs
	}
	return l, nil
}

func pack(fields []string) string {
	var b strings.Builder
	for _, f := range fields {
		b.WriteString(strconv.Itoa(len(f)))
		b.WriteByte(':')
		b.WriteString(f)
	}
	return b.String()
}

func unpack(text string) ([]string, error) {
	var fields []string
	for text != "" {
		head, rest, ok := strings.Cut(text, ":")
		n, err := strconv.Atoi(head)
		if !ok || err != nil || n < 0 || n > len(rest) {
			return nil, errNotOurs
		}
		fields, text = append(fields, rest[:n]), rest[n:]
	}
	return fields, nil
}
