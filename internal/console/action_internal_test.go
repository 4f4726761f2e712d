package console

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestTheOldestActionThatEndedGivesWayToANewOne(t *testing.T) {
	var s jobs
	for _, id := range []string{"running", "ended", "ended later"} {
		require.NoError(t, s.add(&job{ID: id}))
	}
	for range maxJobs - 3 {
		require.NoError(t, s.add(&job{}))
	}
	require.ErrorContains(t, s.add(&job{ID: "new"}), "too many actions are under way")
	s.get("ended later").end(nil)
	s.get("ended").end(errors.New("failed"))
	require.NoError(t, s.add(&job{ID: "new"}))
	require.NotNil(t, s.get("running"))
	require.Nil(t, s.get("ended"))
	require.NotNil(t, s.get("ended later"))
	require.NotNil(t, s.get("new"))
	require.Len(t, s.list, maxJobs)
}

// P9: an action keeps little, however much was sent.
func TestWhatIsKeptOfAnActionIsBounded(t *testing.T) {
	long := strings.Repeat("x", maxLine-1) + strings.Repeat("é", 1<<20)
	j := &job{Began: time.Now()}
	j.offer(url.Values{"token": {long}, "value": {strings.Repeat("x", maxNext)}})
	require.Nil(t, j.state().Next)
	require.Contains(t, j.state().Lines, "the form is too large to go on from here: go on from the page before")
	j.offer(url.Values{"token": {long}, "reason": {long}, "value": {strings.Repeat("x", maxNext-5)}})
	require.Len(t, j.state().Next.Fields, 1)
	require.Less(t, len(j.state().Next.Reason), maxReason+5)

	for range 2 * maxLines {
		j.say(long)
	}
	j.end(errors.New(long))
	size := 0
	for _, line := range append(j.state().Lines, j.state().Err.Error()) {
		require.LessOrEqual(t, len(line), maxLine+len("…"))
		require.True(t, utf8.ValidString(line))
		size += len(line)
	}
	require.LessOrEqual(t, size, maxSaid+2*maxLine)
	require.Greater(t, size, maxSaid, "a long line is cut, not left out")
	require.Equal(t, "further lines are left out", j.state().Lines[len(j.state().Lines)-1])
}
