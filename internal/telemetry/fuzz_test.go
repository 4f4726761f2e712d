package telemetry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
)

// FuzzDecode holds that decoding never panics, gives the same outcome every
// time and with every decoder, and yields a record or an error that keeps all
// its promises.
func FuzzDecode(f *testing.F) {
	f.Add(device, "8E", plainPayload)
	f.Add(device, "8", bigPayload)
	f.Add(device, "16", with("attributes", `{"1":{"type":"Buffer","data":[1,2]},"__generation_type":3,"2":{"__buffer_b64":"AQI="}}`))
	f.Add(device, "8", with("attributes", `{"a\u0041":[1.5e3,"\ud83d\ude00",{"b":null}]}`))
	f.Add("", "", "")
	used := telemetry.NewDecoder(telemetry.DefaultLimits())
	f.Fuzz(func(t *testing.T, id, codec, payload string) {
		e := &telemetry.Entry{Fields: []string{"device_id", id, "codec", codec, "payload", payload}}
		var a, b telemetry.Record
		errA := used.Decode(e, &a)
		errB := telemetry.NewDecoder(telemetry.DefaultLimits()).Decode(e, &b)
		require.Equal(t, errA, errB)
		if errA != nil {
			var refused *telemetry.DecodeError
			require.ErrorAs(t, errA, &refused)
			requireSoundError(t, refused)
			return
		}
		require.Equal(t, a, b)
		requireSound(t, &a)
		require.True(t, json.Valid(a.Attributes))
		require.Equal(t, byte('{'), a.Attributes[0])
		require.True(t, json.Valid([]byte(payload)))
	})
}

// FuzzScanner holds the decoder against encoding/json: inside attributes both take
// the same documents, apart from what we refuse on purpose, and leave them as they
// are unless they hold sentinels.
func FuzzScanner(f *testing.F) {
	for _, seed := range []string{
		`{"1":1,"2":-0.5e+10,"3":"\ud83d\ude00\u00e9é","4":[true,false,null,{}],"5":{"a":{"b":[]}}}`,
		`{"1":1,"1":2}`, `{"1":"\ud800"}`, `{"1":01}`, `{"1":1.}`, `{"1" : 1e5 }`, "{\"1\":\"\xff\"}", `{"\u0031":1,"1":2}`,
	} {
		f.Add([]byte(seed))
	}
	d := telemetry.NewDecoder(telemetry.Limits{MaxPayloadBytes: 1 << 20, MaxDepth: 5000, MaxAttributes: 1 << 20})
	f.Fuzz(func(t *testing.T, attributes []byte) {
		var r telemetry.Record
		var refused *telemetry.DecodeError
		err := d.Decode(entryOf(with("attributes", string(attributes))), &r)
		good := json.Valid(attributes)
		switch {
		case err == nil && bytes.Contains(attributes, []byte("__")), err == nil && bytes.Contains(attributes, []byte("Buffer")):
			require.True(t, good)
		case err == nil:
			// More members of the payload may hide in what stands for attributes.
			if good {
				require.Equal(t, string(bytes.Trim(attributes, " \t\r\n")), string(r.Attributes))
			}
		case errors.As(err, &refused):
			switch refused.Rule {
			case telemetry.RuleNUL, telemetry.RuleSentinel, telemetry.RuleDigits, telemetry.RuleBase64, telemetry.RuleByte,
				telemetry.RuleRange, telemetry.RuleType, telemetry.RulePayloadBytes, telemetry.RuleDepth,
				telemetry.RuleDuplicateKey, telemetry.RuleUTF8, telemetry.RuleSurrogate:
			default:
				if good {
					t.Fatalf("we refuse what is good JSON: %s", err)
				}
			}
		}
	})
}
