package stream_test

import (
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// large is a bench on a server of its own with entries of one size, read through
// a proxy with a short timeout.
func large(t *testing.T, entries, size int, timeout time.Duration) (b *bench, proxy *devenv.Proxy, ids []telemetry.EntryID) {
	t.Helper()
	env := testenv.OwnServers(t, devenv.Options{Redis: true})
	opts, err := redis.ParseURL(env.Redis.URL())
	require.NoError(t, err)
	client := redis.NewClient(opts)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	proxy = testenv.Proxy(t, opts.Addr)
	url, err := proxy.URL(env.Redis.URL())
	require.NoError(t, err)
	b = benchOn(t, client, stream.Config{URL: url, Stream: "large", Group: "g", Shards: shards, Timeout: timeout})
	payload := strings.Repeat("x", size)
	list := make([][]string, entries)
	for i := range list {
		list[i] = []string{"device_id", deviceOf(i%shards, 0), "payload", payload}
	}
	ids, err = fleet.NewPublisher(client, b.cfg.Stream, 0).Publish(t.Context(), list)
	require.NoError(t, err)
	return b, proxy, ids
}

// readAll reads everything with a kind of read, over failures. It returns the
// number of entries, of failures, and the last failure.
func readAll(t *testing.T, want int, read func(after telemetry.EntryID) (int, telemetry.EntryID, error)) (failures int, last error) {
	t.Helper()
	var after telemetry.EntryID
	for have := 0; have < want; {
		n, next, err := read(after)
		if err != nil {
			failures, last = failures+1, err
			require.Less(t, failures, 12, "it reads the same again and again: %v", err)
			continue
		}
		require.NotZero(t, n)
		have, after = have+n, next
	}
	return failures, last
}

func (b *bench) newEntries(after telemetry.EntryID) (int, telemetry.EntryID, error) {
	a, err := b.ReadNew(b.t.Context(), after, 4096, time.Millisecond)
	return len(a.Entries), a.Last, err
}

func TestAReadThatTheLinkCannotCarryIsMadeSmaller(t *testing.T) {
	t.Parallel()
	const size, timeout = 100_000, time.Second // at 1 MB/s ten entries are one too many
	b, proxy, ids := large(t, 40, size, timeout)
	b.turn("t")
	proxy.Throttle(1_000_000)
	failures, err := readAll(t, len(ids), b.newEntries)
	require.NotZero(t, failures)
	require.ErrorContains(t, err, "bandwidth")
	t.Log(failures, err)
	proxy.Throttle(0)
}

func TestAServerThatLimitsTheMemoryOfClientsIsReadInSmallerPieces(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string][2]string{
		"output buffer": {"client-output-buffer-limit", "normal 700000 0 0"},
		"clients":       {"maxmemory-clients", "1mb"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, _, ids := large(t, 60, 150_000, 5*time.Second)
			b.turn("t")
			require.NoError(t, b.client.ConfigSet(t.Context(), limit[0], limit[1]).Err())
			failures, err := readAll(t, len(ids), b.newEntries)
			require.NotZero(t, failures)
			require.ErrorContains(t, err, limit[0])
			t.Log("new entries:", failures, err)

			// All kinds of reads, each with a client that knows nothing yet.
			var after telemetry.EntryID
			dispatched := 0
			for dispatched < len(ids) {
				a, err := b.ReadNew(t.Context(), after, 4096, time.Millisecond)
				if err != nil {
					continue
				}
				_, err = b.Dispatch(t.Context(), protocol.DispatchRequest{Token: "t", TTL: time.Minute, After: after}, &a)
				require.NoError(t, err)
				after, dispatched = a.Last, dispatched+len(a.Entries)
			}
			fresh := benchOn(t, b.client, b.cfg)
			cursors := make([]telemetry.EntryID, shards)
			failures, _ = readAll(t, len(ids), func(telemetry.EntryID) (int, telemetry.EntryID, error) {
				reads := make([]protocol.QueueRead, shards)
				for s := range reads {
					reads[s] = protocol.QueueRead{Shard: s, After: cursors[s], Count: 512}
				}
				replies, err := fresh.ReadQueues(t.Context(), reads)
				n := 0
				for s := range replies {
					if k := len(replies[s].Entries); k > 0 {
						cursors[s], n = replies[s].Entries[k-1].ID, n+k
					}
				}
				return n, telemetry.EntryID{}, err
			})
			t.Log("queues:", failures)

			fresh = benchOn(t, b.client, b.cfg)
			failures, _ = readAll(t, len(ids), func(telemetry.EntryID) (int, telemetry.EntryID, error) {
				ranges := make([]protocol.Range, shards)
				for s := range ranges {
					ranges[s] = protocol.Range{Shard: s, To: telemetry.MaxEntryID}
				}
				n, err := fresh.Redeliver(t.Context(), ranges)
				if err != nil {
					return 0, telemetry.EntryID{}, err
				}
				return n, telemetry.EntryID{}, nil
			})
			t.Log("redelivery:", failures)

			fresh = benchOn(t, b.client, b.cfg)
			failures, _ = readAll(t, len(ids)/shards, func(after telemetry.EntryID) (int, telemetry.EntryID, error) {
				claimed, err := fresh.Claim(t.Context(), stream.Consumer(1), 0, after, 100)
				return claimed.Entries, claimed.Next, err
			})
			t.Log("claims:", failures)

			connected, err := stream.Connect(b.cfg)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, connected.Close()) })
			dead, err := stream.NewDeadLetters(connected, stream.Config{Stream: "other", Group: "g"}, b.cfg.Stream)
			require.NoError(t, err)
			failures, _ = readAll(t, len(ids), func(after telemetry.EntryID) (int, telemetry.EntryID, error) {
				letters, err := dead.List(t.Context(), after, 200)
				if err != nil {
					return 0, after, err
				}
				return len(letters), letters[len(letters)-1].ID, nil
			})
			t.Log("dead letters:", failures)
		})
	}
}

// An outage says nothing about sizes.
func TestAnOutageDoesNotMakeReadsSmaller(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	b, proxy, ids := large(t, 3000, 10, 1500*time.Millisecond) // a loaded machine takes a while for a good one
	b.turn("t")
	require.Len(t, b.read(telemetry.EntryID{}).Entries, len(ids))
	require.NoError(t, proxy.Stall())
	for range 3 {
		_, _, err := b.newEntries(telemetry.EntryID{})
		require.Error(t, err)
		require.NotContains(t, err.Error(), "the next read asks for")
	}
	require.NoError(t, proxy.Resume())
	proxy.Cut()
	testenv.Wait(t, 5*time.Second, func() error {
		n, _, err := b.newEntries(telemetry.EntryID{})
		if err == nil {
			require.Equal(t, len(ids), n)
		}
		return err
	})
}
