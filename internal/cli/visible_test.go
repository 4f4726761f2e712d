package cli_test

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/cli"
)

func TestNothingThatATerminalActsUponIsLeft(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Wien, ČSSR 48.1 → 16.3 🚚":       "Wien, ČSSR 48.1 → 16.3 🚚",
		"a\x1b]0;title\x07b":             `a\x1b]0;title\x07b`,
		"over\rwritten":                  `over\rwritten`,
		"c1 \u009b31m":                   `c1 \u009b31m`,
		"\u202egnp.exe\u2066 \u2069":     `\u202egnp.exe\u2066 \u2069`,
		"zero\u200bwidth\ufeff\u00ad":    `zero\u200bwidth\ufeff\u00ad`,
		"bytes \xff\x9b":                 `bytes \xff\x9b`,
		"tag \U000e0041":                 `tag \U000e0041`,
		"two\nlines\tand \u2028separate": "two\nlines\tand \\u2028separate",
	} {
		require.Equal(t, want, cli.Visible(in))
	}
	require.Equal(t, `two\nlines\t`, cli.VisibleLine("two\nlines\t"))
	require.Equal(t, "\x1b[31mred\\x1b[2J\x1b[0m", cli.VisiblePainted("\x1b[31mred\x1b[2J\x1b[0m"))

	for r := rune(0); r <= unicode.MaxRune; r++ {
		for _, got := range cli.VisibleLine(string(r)) {
			require.False(t, unicode.IsControl(got) || unicode.Is(unicode.Cf, got), "%U", r)
		}
	}
}

func TestJSONSaysTheSameWithoutWhatATerminalActsUpon(t *testing.T) {
	t.Parallel()
	want := "a\x1b]0;\x07\r\u009b\u202e\u2066\u200b\u2028\x7f\U000e0041 Č 🚚"
	var b strings.Builder
	enc := json.NewEncoder(cli.JSON(&b))
	enc.SetEscapeHTML(false)
	require.NoError(t, enc.Encode(want))
	for _, r := range strings.TrimSuffix(b.String(), "\n") {
		require.False(t, unicode.IsControl(r) || unicode.Is(unicode.Cf, r), "%U in %s", r, b.String())
	}
	require.Contains(t, b.String(), "Č 🚚")
	var got string
	require.NoError(t, json.Unmarshal([]byte(b.String()), &got))
	require.Equal(t, want, got)
}
