package operator

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
)

// P9: what a few bytes of a form put into a payload is bounded.
func TestAReplacementIsBoundedInWhatItPutsIntoAPayload(t *testing.T) {
	payload := strings.Repeat("a", 2000)
	for what, tt := range map[string]struct {
		r    Replacement
		want bool // it is replaced
	}{
		"a text, within":                {Replacement{Old: "a", New: strings.Repeat("b", 500)}, true},
		"a text, beyond":                {Replacement{Old: "a", New: strings.Repeat("b", 600)}, false},
		"a pattern, within":             {Replacement{Old: "a", New: strings.Repeat("b", 500), Regexp: true}, true},
		"a pattern, beyond":             {Replacement{Old: "a", New: strings.Repeat("b", 600), Regexp: true}, false},
		"an empty match, beyond":        {Replacement{Old: "", New: "x", Regexp: true}, false},
		"what a $ stands for, within":   {Replacement{Old: "(a+)", New: strings.Repeat("$1", 500), Regexp: true}, true},
		"what a $ stands for, beyond":   {Replacement{Old: "(a+)", New: strings.Repeat("$1", 600), Regexp: true}, false},
		"a pattern that is too long":    {Replacement{Old: strings.Repeat("a", 2001), New: "b"}, false},
		"a new text that is too long":   {Replacement{Old: "a", New: strings.Repeat("b", 2001)}, false},
		"a pattern that does not parse": {Replacement{Old: "(", New: "b", Regexp: true}, false},
	} {
		replace, err := tt.r.Replacer()
		if err != nil {
			require.False(t, tt.want, what)
			continue
		}
		after := replace(payload)
		require.Equal(t, tt.want, after != payload, what)
		require.LessOrEqual(t, len(after), len(payload)+maxGrowth, what)
	}
}

func TestAListKeepsTheBeginningOfAValueAlone(t *testing.T) {
	e := telemetry.Entry{Fields: []string{telemetry.FieldPayload, `{"speed": "50km/h", "io": {"a": 1}, "long": "` + strings.Repeat("ü", 1<<20) + `"}`}}
	for field, want := range map[string]string{"payload.speed": `"50km/h"`, "payload.io.a": "1", "payload.none": "", "payload.speed.x": "", "other": ""} {
		require.Equal(t, want, valueOf(&e, field), field)
	}
	for _, field := range []string{"payload", "payload.long"} {
		got := valueOf(&e, field)
		require.LessOrEqual(t, len(got), shownValue+len("…"), field)
		require.True(t, utf8.ValidString(got) && strings.HasSuffix(got, "…"), got)
	}
}
