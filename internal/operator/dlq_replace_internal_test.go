package operator

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
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
