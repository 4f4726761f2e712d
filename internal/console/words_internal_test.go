package console

import (
	"io/fs"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/operator"
)

func TestNoLinkEscapesAQueryTwice(t *testing.T) {
	// What stands behind ? in an address is escaped as one value, so a query that has
	// names and values must come with the whole address.
	whole := regexp.MustCompile(`(?:href|action)="[^"{]*\?\{\{\.`)
	list, err := fs.Glob(files, "templates/*.html")
	require.NoError(t, err)
	require.NotEmpty(t, list)
	for _, name := range list {
		text, err := files.ReadFile(name)
		require.NoError(t, err)
		require.Empty(t, whole.FindAllString(string(text), -1), name)
	}
}

func TestTheLastUnitOfATimeIsIncluded(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"2026-11-29T13:42:18": time.Second, "2026-11-29T13:42": time.Second, "2026-11-29T13:42:18.617": time.Millisecond,
		"2026-11-29T13:42:18Z": time.Second, "2026-11-29T13:42:18.617123Z": time.Microsecond, "2026-11-29T13:42:18.617123999": time.Microsecond,
	} {
		require.Equal(t, want, unitOf(text), text)
	}
}

func TestAQuestionSaysWhatItIsAbout(t *testing.T) {
	d := lettersData{Filter: operator.Filter{Fingerprint: "decode/payload.speed/type"}}
	require.Equal(t, "all dead letters of decode/payload.speed/type", d.Which(0), "not counted yet")
	d.Count = reading[int]{Value: 51, At: time.Now()}
	require.Equal(t, "51 dead letters of decode/payload.speed/type", d.Which(0))
	require.Equal(t, "the 10 oldest of 51 dead letters of decode/payload.speed/type", d.Which(10))
	d.Filter = operator.Filter{Class: "sink", Device: "d"}
	d.Count.Value = 1
	require.Equal(t, "1 dead letter of class sink of device d", d.Which(10))
}
