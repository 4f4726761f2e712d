package fleet_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// memoryStream is a stream whose connection breaks as the test wants it to.
type memoryStream struct {
	entries []telemetry.Entry
	delayed [][]string // sent on a connection that is gone, executed later
	fault   func() string
	latency time.Duration
	calls   int
}

func (m *memoryStream) add(fields []string) telemetry.EntryID {
	id := telemetry.EntryID{Ms: 1_800_000_000_000 + uint64(len(m.entries)/3), Seq: uint64(len(m.entries) % 3)}
	m.entries = append(m.entries, telemetry.Entry{ID: id, Fields: slices.Clone(fields)})
	return id
}

func (m *memoryStream) Publish(_ context.Context, entries [][]string) ([]telemetry.EntryID, error) {
	m.calls++
	if m.latency > 0 {
		<-time.After(m.latency)
	}
	for _, fields := range m.delayed {
		m.add(fields)
	}
	m.delayed = nil
	var ids []telemetry.EntryID
	for i, fields := range entries {
		switch m.fault() {
		case "refused":
			return ids, &protocol.Failure{Kind: protocol.Unavailable, Err: errors.New("connection refused")}
		case "reply lost":
			for _, f := range entries[i:] {
				m.add(f)
			}
			return ids, &protocol.Failure{Kind: protocol.Unknown, Err: errors.New("connection reset")}
		case "delayed":
			m.delayed = append(m.delayed, fields)
			return ids, errors.New("i/o timeout")
		case "broken":
			return ids, &protocol.Failure{Kind: protocol.Misconfigured, Err: errors.New("WRONGTYPE")}
		}
		ids = append(ids, m.add(fields))
	}
	return ids, nil
}

func (m *memoryStream) ReadRange(_ context.Context, after telemetry.EntryID, count int) ([]telemetry.Entry, error) {
	var page []telemetry.Entry
	for _, e := range m.entries {
		if after.Less(e.ID) && len(page) < count {
			page = append(page, e)
		}
	}
	return page, nil
}

func send(t require.TestingT, src fleet.Source, pacer fleet.Pacer, pub fleet.Publisher, cfg fleet.SenderConfig) (*fleet.Sender, *bytes.Buffer) {
	var buf bytes.Buffer
	log, err := fleet.NewLogWriter(&buf)
	require.NoError(t, err)
	s, err := fleet.NewSender(cfg, src, pacer, pub, log, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	return s, &buf
}

func logged(t require.TestingT, buf *bytes.Buffer) []fleet.Sent {
	var all []fleet.Sent
	log := fleet.NewLog(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
	require.NoError(t, log.Scan(func(place int64, s *fleet.Sent) error {
		again, err := log.At(place)
		require.NoError(t, err)
		require.Equal(t, *s, again)
		all = append(all, *s)
		return nil
	}))
	return all
}

// TestSendLogEqualsTheStream (promise 4): whatever happens to the connection,
// each entry of the stream is in the log once with its ID and content, and each
// item of the source reached the stream.
func TestSendLogEqualsTheStream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		faults := rapid.SampledFrom([]string{"", "", "", "", "", "", "", "refused", "reply lost", "delayed"})
		m := &memoryStream{fault: func() string { return faults.Draw(t, "fault") }}
		p := fleet.Polluted(rapid.Uint64().Draw(t, "seed"))
		p.Devices, p.Junk = 3, 0.2
		p.LostAcks, p.Gaps = 0.5, 0.4 // many entries with equal content
		p.Overtakes, p.Twins, p.BadClocks, p.NoFixes = 0, 0, 0, 0
		p.Limit = rapid.IntRange(1, 100).Draw(t, "items")
		source, err := p.Source()
		require.NoError(t, err)
		cfg := fleet.DefaultSenderConfig()
		cfg.RetryDelay = time.Microsecond
		cfg.MaxBatchRecords = rapid.IntRange(1, 20).Draw(t, "batch")
		s, buf := send(t, source, fleet.AtSpeed(0), m, cfg)
		require.NoError(t, s.Run(t.Context()))
		_, err = s.Settle(t.Context(), m)
		require.NoError(t, err)
		for _, fields := range m.delayed {
			m.add(fields)
		}
		_, err = s.Settle(t.Context(), m)
		require.NoError(t, err)

		all := logged(t, buf)
		slices.SortFunc(all, func(a, b fleet.Sent) int { return a.ID.Compare(b.ID) })
		require.Len(t, all, len(m.entries))
		require.Equal(t, int64(len(all)), s.Progress().Sent)
		for i, e := range m.entries {
			require.Equal(t, e.ID, all[i].ID)
			if all[i].Class == "" {
				require.Equal(t, e.Fields, fleet.EntryFields(&all[i].Message))
			} else {
				require.Equal(t, e.DeviceID(), all[i].Message.DeviceID)
			}
		}
		have := map[string]int{}
		for _, e := range m.entries {
			have[strings.Join(e.Fields, " ")]++
		}
		again, err := p.Source()
		require.NoError(t, err)
		for _, it := range fleet.Collect(again) {
			have[strings.Join(it.Fields(), " ")]--
		}
		for text, n := range have {
			require.GreaterOrEqual(t, n, 0, text)
		}
	})
}

// TestSlowServerDoesNotSlowTheLoad (promise 3): with a server that takes 100 ms
// for each pipeline, a second of load still takes a second.
func TestSlowServerDoesNotSlowTheLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, pacer := range []fleet.Pacer{fleet.AtSpeed(2), fleet.AtRate(200)} {
			m := &memoryStream{fault: func() string { return "" }, latency: 100 * time.Millisecond}
			source, err := fleet.Steady(1, 10, 100, 10*time.Second).Source()
			require.NoError(t, err)
			s, buf := send(t, source, pacer, m, fleet.DefaultSenderConfig())
			begin := time.Now()
			require.NoError(t, s.Run(t.Context()))
			require.InDelta(t, 5.0, time.Since(begin).Seconds(), 0.2)
			require.Less(t, s.Progress().Worst, 200*time.Millisecond)
			require.Less(t, m.calls, 60)
			require.Len(t, logged(t, buf), 1000)
		}
	})
}

func TestSenderStopsWithItsContextAndOnPermanentErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, err := fleet.Rally(1).Source()
		require.NoError(t, err)
		m := &memoryStream{fault: func() string { return "broken" }}
		s, _ := send(t, source, fleet.AtSpeed(1), m, fleet.DefaultSenderConfig())
		require.ErrorContains(t, s.Run(t.Context()), "WRONGTYPE")

		m.fault = func() string { return "refused" }
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		s, buf := send(t, source, fleet.AtSpeed(1), m, fleet.DefaultSenderConfig())
		require.NoError(t, s.Run(ctx))
		require.Empty(t, logged(t, buf))
		require.Greater(t, s.Progress().Failures, int64(20))
		found, err := s.Settle(t.Context(), m)
		require.NoError(t, err)
		require.Zero(t, found)
	})
}

// busyStream is one that others add to as fast as it is read.
type busyStream struct {
	*memoryStream
	reads int
}

func (b *busyStream) ReadRange(ctx context.Context, after telemetry.EntryID, count int) ([]telemetry.Entry, error) {
	b.reads++
	for range count {
		b.add([]string{"device_id", "of others"})
	}
	return b.memoryStream.ReadRange(ctx, after, count)
}

func (b *busyStream) Last(context.Context) (telemetry.EntryID, error) {
	return b.entries[len(b.entries)-1].ID, nil
}

func TestSettlingEndsThoughOthersGoOnAdding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := fleet.Rally(1)
		p.Limit = 100
		source, err := p.Source()
		require.NoError(t, err)
		lost := false
		m := &memoryStream{fault: func() string {
			if !lost {
				lost = true
				return "reply lost"
			}
			return ""
		}}
		s, _ := send(t, source, fleet.AtSpeed(0), m, fleet.DefaultSenderConfig())
		require.NoError(t, s.Run(t.Context()))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		busy := &busyStream{memoryStream: m}
		found, err := s.Settle(ctx, busy)
		require.NoError(t, err)
		require.Positive(t, found)
		require.LessOrEqual(t, busy.reads, 2)
	})
}

func TestDamagedSendLogIsNamed(t *testing.T) {
	source, err := fleet.Polluted(4).Source()
	require.NoError(t, err)
	var buf bytes.Buffer
	w, err := fleet.NewLogWriter(&buf)
	require.NoError(t, err)
	for n := range 200 {
		it, _ := source.Next()
		s := fleet.Sent{ID: telemetry.EntryID{Ms: uint64(n) + 1}, Message: it.Message}
		if it.Junk != nil {
			s.Junk, s.Class = it.Junk.Kind, it.Junk.Class
		}
		require.NoError(t, w.Append(&s))
	}
	require.NoError(t, w.Flush())
	require.Equal(t, 200, w.Len())
	require.Len(t, logged(t, &buf), 200)

	whole := buf.Bytes()
	scan := func(b []byte) (int, error) {
		n := 0
		err := fleet.NewLog(bytes.NewReader(b), int64(len(b))).Scan(func(int64, *fleet.Sent) error { n++; return nil })
		return n, err
	}
	n, err := scan(whole[:len(whole)-3])
	require.ErrorContains(t, err, "damaged or cut off")
	require.Equal(t, 199, n)
	_, err = scan([]byte("PK\x03\x04 something else"))
	require.ErrorContains(t, err, "no send log")
	rapid.Check(t, func(t *rapid.T) {
		bad := slices.Clone(whole)
		for range rapid.IntRange(1, 4).Draw(t, "flips") {
			bad[rapid.IntRange(0, len(bad)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
		}
		_, _ = scan(bad) // ends, without a panic
	})
}
