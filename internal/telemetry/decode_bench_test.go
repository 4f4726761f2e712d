package telemetry_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
)

const (
	payloadHead  = `{"device_id":"352093081452251","timestamp":"2026-01-02T03:04:05.678Z","latitude":54.6871593,"longitude":25.2796514,"altitude":112,"angle":271,"speed":57,"satellites":14,"priority":0,`
	plainPayload = payloadHead + `"attributes":{"16":1843200,"21":5,"66":12453,"67":4012,"69":1,"113":98,"181":8,"182":6,"200":0,"239":1,"240":1,"241":24601}}`
	bigPayload   = payloadHead + `"attributes":{"21":5,"66":12453,"67":4012,"69":1,"113":98,"200":0,"240":1,"241":24601,"78":{"__bigint":"18446744073709551615"}}}`
)

func entryOf(payload string) *telemetry.Entry {
	return &telemetry.Entry{
		ID: telemetry.EntryID{Ms: 1767323046000, Seq: 7},
		Fields: []string{
			"ts", "2026-01-02T03:04:05.678Z", "device_id", "352093081452251", "codec", "8E", "payload", payload,
		},
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, bench := range []struct{ name, payload string }{
		{"plain", plainPayload},
		{"bigint", bigPayload},
		{"buffer", payloadHead + `"attributes":{"21":5,"66":12453,"385":{"__buffer_b64":"AAECAwQFBgcICQ=="},"240":1}}`},
		{"legacy", payloadHead + `"attributes":{"21":5,"66":12453,"385":{"type":"Buffer","data":[1,2,3,4,5,6,7,8]},"240":1}}`},
	} {
		b.Run(bench.name, func(b *testing.B) {
			d := telemetry.NewDecoder(telemetry.DefaultLimits())
			e := entryOf(bench.payload)
			var r telemetry.Record
			b.SetBytes(int64(len(bench.payload)))
			b.ReportAllocs()
			for b.Loop() {
				if err := d.Decode(e, &r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestDecodeTakesLessThanOneAllocationPerRecord(t *testing.T) {
	d := telemetry.NewDecoder(telemetry.DefaultLimits())
	var r telemetry.Record
	plain, big := entryOf(plainPayload), entryOf(bigPayload)
	require.Zero(t, testing.AllocsPerRun(1000, func() { _ = d.Decode(plain, &r) }))
	require.JSONEq(t, plainPayload[len(payloadHead)+len(`"attributes":`):len(plainPayload)-1], string(r.Attributes))
	require.Less(t, testing.AllocsPerRun(1000, func() { _ = d.Decode(big, &r) }), 1.0)
	require.Contains(t, string(r.Attributes), `"78":"18446744073709551615"}`)
}
