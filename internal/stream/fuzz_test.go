package stream

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
)

// FuzzDeadLetter checks that decoding a dead letter never panics, whatever it holds,
// and that what we encode is decoded byte for byte.
func FuzzDeadLetter(f *testing.F) {
	l := telemetry.DeadLetter{
		Entry: telemetry.Entry{ID: telemetry.EntryID{Ms: 1_700_000_000_000, Seq: 1}, Fields: []string{"ts", "1", "payload", "{}"}},
		Shard: 3, Class: telemetry.ClassDecode, Error: "decode: payload", Attempts: 3,
	}
	f.Add(strings.Join(EncodeDeadLetter(&l), "\n"), "decode", "decode: payload", 3)
	f.Add("dlq_packed_fields\n3:abc1:d\ndlq_class\nsink\ndlq_source_id\n1-1\ndlq_original_fields\n0", "sink", "", 1)
	f.Add("dlq_packed_fields\n99999999999999999999:a\ndlq_original_fields\n9223372036854775807", "crash", "\x00", -1)
	f.Fuzz(func(t *testing.T, text, class, reason string, attempts int) {
		fields := strings.Split(text, "\n")
		_, _ = decodeDeadLetter(fields) // must not panic
		if len(fields)%2 == 1 || class == "" {
			return
		}
		want := telemetry.DeadLetter{
			Entry: telemetry.Entry{ID: telemetry.EntryID{Ms: 1}, Fields: fields},
			Class: telemetry.Class(class), Error: reason, Attempts: attempts,
		}
		got, err := decodeDeadLetter(EncodeDeadLetter(&want))
		require.NoError(t, err)
		require.Equal(t, want, got)
		unpacked, err := unpack(pack(fields))
		require.NoError(t, err)
		require.Equal(t, fields, unpacked)
	})
}

// FuzzReply checks that parsing a reply never panics and uses no more memory
// than the bytes of the reply warrant.
func FuzzReply(f *testing.F) {
	f.Add("*1\r\n*2\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n")
	f.Add("%1\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-1\r\n_\r\n")
	f.Add("*2\r\n*2\r\n$3\r\n1-1\r\n*-1\r\n*2\r\n$3\r\n1-2\r\n*0\r\n")
	f.Add("*9223372036854775807\r\n*2\r\n$9223372036854775807\r\n")
	f.Add("-NOGROUP no such group\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, parse := range []func([]byte) (batch, error){parseRead, parseRange} {
			b, err := parse([]byte(text))
			if err != nil {
				continue
			}
			require.LessOrEqual(t, len(b.entries), len(text))
			require.Len(t, b.ids, len(b.entries))
			for i := range b.entries {
				require.False(t, len(b.ids[i]) > 0 && b.entries[i].ID.String() == "", "an entry without ID")
			}
		}
	})
}
