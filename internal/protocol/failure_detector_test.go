package protocol_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
)

var detection = protocol.FailureDetectorConfig{TTL: 5 * time.Second, SinkGrace: 5 * time.Second, Stall: 30 * time.Second}

// watch is a detector fed once a second.
type watch struct {
	*protocol.FailureDetector
	now   time.Time
	beats map[string]*protocol.Beat
}

func newWatch(members ...string) *watch {
	w := &watch{FailureDetector: protocol.NewFailureDetector(detection), now: time.Unix(1000, 0), beats: map[string]*protocol.Beat{}}
	for _, m := range members {
		w.beats[m] = &protocol.Beat{Member: m, InFlight: 5}
	}
	return w
}

// pass lets time pass; the members named make progress all the time.
func (w *watch) pass(d time.Duration, progressing ...string) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(time.Second)
		var list []protocol.Beat
		for _, b := range w.beats {
			b.Number++
			list = append(list, *b)
		}
		for _, m := range progressing {
			w.beats[m].Progress++
			w.beats[m].CallsReturned++
		}
		w.Observe(w.now, list)
	}
}

func TestAMemberThatStallsWhileAnotherAdvancesLosesItsShards(t *testing.T) {
	w := newWatch("a", "b")
	w.pass(29*time.Second, "a")
	require.Equal(t, []string{"a", "b"}, w.Eligible(w.now))
	w.pass(3*time.Second, "a")
	require.Equal(t, []string{"a"}, w.Eligible(w.now))
	require.Equal(t, []string{"b"}, w.Stalled(w.now))
	w.pass(3*time.Second, "a", "b")
	require.Equal(t, []string{"a", "b"}, w.Eligible(w.now), "progress clears it")
}

// While Redis is away nobody can make progress: the clocks of all start over,
// those of stalls too.
func TestAnAbsenceOfRedisIsNoStall(t *testing.T) {
	w := newWatch("a", "b")
	w.pass(25 * time.Second)
	for range 60 {
		w.now = w.now.Add(time.Second)
		w.RedisUnavailable(w.now)
	}
	require.False(t, w.Gone(w.now, "a"))
	w.pass(25*time.Second, "a")
	require.Empty(t, w.Stalled(w.now), "25 seconds since it is back, not 110")
	require.Equal(t, []string{"a", "b"}, w.Eligible(w.now))
	w.pass(7*time.Second, "a")
	require.Equal(t, []string{"b"}, w.Stalled(w.now))
}

func TestASilentMemberIsGoneAfterTheTTLAndNotBefore(t *testing.T) {
	w := newWatch("a", "b")
	w.pass(10*time.Second, "a", "b")
	silent := w.beats["b"]
	delete(w.beats, "b")
	w.pass(4*time.Second, "a")
	require.False(t, w.Gone(w.now, "b"))
	w.pass(time.Second, "a")
	require.True(t, w.Gone(w.now, "b"))
	require.Equal(t, []string{"a"}, w.Eligible(w.now))
	// Found, but its number does not advance: frozen, and gone as well.
	w.beats["b"] = silent
	w.pass(time.Second, "a", "b")
	for range 6 {
		w.now = w.now.Add(time.Second)
		w.beats["a"].Number++
		w.Observe(w.now, []protocol.Beat{*w.beats["a"], *silent})
	}
	require.True(t, w.Gone(w.now, "b"))
}

// What is observed once a second would be gone up to a second late. The server says how old
// a beat is; a clock of it that jumps makes nobody gone by more than that second too early.
func TestASilentMemberIsGoneATTLAfterItsLastBeatWheneverThatWasSeen(t *testing.T) {
	for _, tt := range []struct {
		name      string
		age, lost time.Duration
	}{
		{"unknown", 0, 0},
		{"known", 700 * time.Millisecond, 700 * time.Millisecond},
		{"the server's clock jumped ahead", time.Hour, time.Second},
		{"and back", -time.Hour, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWatch("a", "b")
			w.pass(10*time.Second, "a", "b")
			w.beats["b"].Age = tt.age
			w.pass(time.Second, "a", "b")
			gone := w.now.Add(detection.TTL - tt.lost)
			require.Equal(t, gone, w.Expiry(w.now))
			require.False(t, w.Gone(gone.Add(-1), "b"))
			require.True(t, w.Gone(gone, "b"))
		})
	}
}

func TestTheNextExpiryIsThatOfTheMemberSilentForLongest(t *testing.T) {
	w := newWatch("a", "b", "c")
	require.Zero(t, w.Expiry(w.now), "nobody is there")
	w.pass(10*time.Second, "a", "b", "c")
	delete(w.beats, "b")
	at := w.now
	w.pass(2*time.Second, "a", "c")
	require.Equal(t, at.Add(detection.TTL), w.Expiry(w.now))
	w.pass(4*time.Second, "a", "c")
	require.Equal(t, w.now.Add(detection.TTL), w.Expiry(w.now), "b is gone already")
	// Nobody is gone for a while after Redis was away, whatever was seen before.
	w.RedisUnavailable(w.now)
	require.Equal(t, w.now.Add(detection.TTL), w.Expiry(w.now))
}

func TestAMemberThatAnnouncedItsLeavingIsGoneWhenItIsNotFound(t *testing.T) {
	w := newWatch("a", "b")
	w.pass(3*time.Second, "a", "b")
	w.beats["b"].Leaving = true
	w.pass(time.Second, "a")
	require.True(t, w.Leaving("b"))
	require.False(t, w.Gone(w.now, "b"), "it still beats")
	require.Equal(t, []string{"a"}, w.Eligible(w.now))
	delete(w.beats, "b")
	w.pass(time.Second, "a")
	require.True(t, w.Gone(w.now, "b"))
}

func TestAMemberThatLeftIsGoneThoughNobodySawItLeaving(t *testing.T) {
	w := newWatch("a", "b")
	w.pass(3*time.Second, "a", "b")
	require.True(t, w.Willing(w.now, "b"))
	w.beats["b"].Left = true
	w.pass(time.Second, "a", "b")
	require.False(t, w.Willing(w.now, "b"), "nothing is left of it that could release")
	require.False(t, w.Gone(w.now, "b"), "it did not announce it, and may be stuck")
	require.Equal(t, []string{"a"}, w.Eligible(w.now))
	w.beats["c"] = &protocol.Beat{Member: "c", Left: true}
	w.pass(time.Second, "a", "b")
	require.True(t, w.Gone(w.now, "c"), "it left before it was seen")
	w.beats["b"].Leaving = true
	w.pass(time.Second, "a", "b")
	require.True(t, w.Gone(w.now, "b"))
	w.beats["b"].Left = false
	w.pass(time.Second, "a", "b")
	require.True(t, w.Gone(w.now, "b"), "a beat came late")
	w.beats["b"].Left = true
	require.Equal(t, []string{"a"}, w.Eligible(w.now))
	w.pass(time.Second, "a")
	require.True(t, w.Gone(w.now, "b"), "its last beat is found again")
}

// An identity is free once its member has left or its heartbeat has expired.
func TestAMemberWhoseIdentityAnotherOneHasIsGone(t *testing.T) {
	w := newWatch("a.1", "b.1")
	w.pass(3*time.Second, "a.1", "b.1")
	delete(w.beats, "b.1")
	w.beats["b.2"] = &protocol.Beat{Member: "b.2"}
	w.pass(time.Second, "a.1")
	require.True(t, w.Gone(w.now, "b.1"))
	require.Equal(t, []string{"a.1", "b.2"}, w.Eligible(w.now))
}

// What stops everybody moves nothing; what stops one member's way to Postgres
// alone moves its shards after the grace.
func TestOnlyAMemberCutOffAloneLosesItsShards(t *testing.T) {
	w := newWatch("a", "b")
	w.pass(10*time.Second, "a", "b")
	w.beats["b"].SinkDown = detection.SinkGrace - 1
	w.pass(time.Second, "a")
	require.Equal(t, []string{"a", "b"}, w.Eligible(w.now))
	require.True(t, w.Willing(w.now, "b"))
	w.beats["b"].SinkDown = detection.SinkGrace
	w.pass(time.Second, "a")
	require.Equal(t, []string{"a"}, w.Eligible(w.now))
	require.True(t, w.CutOff(w.now, "b"))
	require.False(t, w.Willing(w.now, "b"))
}

// After an outage of Postgres members find it again one after the other. The first one
// back is no evidence against the others until they had the grace, too, and what reaches
// it for a moment between is none at all.
func TestTheFirstMemberBackAfterAnOutageTakesNothingFromTheOthers(t *testing.T) {
	w := newWatch("a", "b")
	w.pass(10*time.Second, "a", "b")
	down := func(a, b time.Duration) {
		w.beats["a"].SinkDown, w.beats["b"].SinkDown = a, b
	}
	down(29*time.Second, 29*time.Second)
	w.pass(2 * time.Second)
	down(0, 30*time.Second)
	w.pass(time.Second)
	require.Equal(t, []string{"a", "b"}, w.Eligible(w.now), "a is back")
	require.True(t, w.Willing(w.now, "b"))
	require.False(t, w.CutOff(w.now, "b"))
	down(time.Second, 31*time.Second)
	w.pass(time.Second)
	down(0, 32*time.Second)
	w.pass(detection.SinkGrace)
	require.Equal(t, []string{"a", "b"}, w.Eligible(w.now), "and a again, after it was not")
	w.pass(time.Second)
	require.Equal(t, []string{"a"}, w.Eligible(w.now), "b has had its grace since")
}

// Nobody is seen while Redis is away, too: that a member reached Postgres before says nothing.
func TestAfterAnOutageOfBothServersTheFirstMemberBackTakesNothing(t *testing.T) {
	w := newWatch("a", "b")
	w.pass(10*time.Second, "a", "b")
	for range 8 {
		w.now = w.now.Add(time.Second)
		w.RedisUnavailable(w.now)
	}
	w.beats["a"].SinkDown, w.beats["b"].SinkDown = 0, 8*time.Second
	w.pass(time.Second)
	require.Equal(t, []string{"a", "b"}, w.Eligible(w.now))

	// The beat of a member that is not found any more says nothing either.
	w = newWatch("a", "b", "c")
	w.pass(10*time.Second, "a", "b", "c")
	delete(w.beats, "c")
	w.beats["a"].SinkDown, w.beats["b"].SinkDown = 6*time.Second, 6*time.Second
	w.pass(2 * time.Second)
	w.beats["a"].SinkDown = 0
	w.pass(time.Second)
	require.Contains(t, w.Eligible(w.now), "b")
}

// A frozen member stays out until a call of it returns: idleness after it lost
// its shards is no sign of health.
func TestAFrozenMemberStaysOutUntilACallReturns(t *testing.T) {
	w := newWatch("a", "b")
	w.pass(32*time.Second, "a")
	require.Equal(t, []string{"a"}, w.Eligible(w.now))
	w.beats["b"].InFlight = 0
	w.pass(2*time.Minute, "a")
	require.Equal(t, []string{"a"}, w.Eligible(w.now))
	w.beats["b"].CallsReturned++
	w.pass(time.Second, "a")
	require.Equal(t, []string{"a", "b"}, w.Eligible(w.now))
}
