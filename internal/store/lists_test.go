package store_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

const insertPosition = `
insert into public.positions (device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
values ($1, $2, $2, 42, 1, 0, 0, 0, 5, 0, '8', '{}')`

// collated is a bench on a database that orders by the rules of a language.
func collated(t *testing.T) *bench {
	t.Helper()
	address := testenv.Postgres(t)
	b := &bench{tb: t, url: address}
	u, err := url.Parse(address)
	require.NoError(t, err)
	u.Path += "_collated"
	admin := b.open("bench", address)
	_, err = admin.Exec(t.Context(), fmt.Sprintf("create database %q template template0 encoding 'UTF8' locale 'C' locale_provider icu icu_locale 'en-US'", u.Path[1:]))
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := admin.Exec(context.Background(), fmt.Sprintf("drop database %q with (force)", u.Path[1:]))
		require.NoError(t, err)
	})
	_, err = schema.Migrate(t.Context(), u.String(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	b.pool = b.open("bench", u.String())
	return b
}

// By the rules of a language, those that begin alike do not lie together.
func TestDevicesAreFoundByTheirBeginningWhateverTheCollation(t *testing.T) {
	t.Parallel()
	b := collated(t)
	for i, device := range []string{"truck-05", "TRUCK-10", "truck-11", "TRUCK-12", "TRUCK%12"} {
		b.exec(insertPosition, device, dayOf(i))
	}
	lists := store.NewLists(b.pool, scope, 10*time.Second)
	found := func(want []string, prefix string) {
		t.Helper()
		for limit := range 3 {
			var all []string
			for after := ""; ; after = all[len(all)-1] {
				page, err := lists.Devices(t.Context(), prefix, after, limit+1)
				require.NoError(t, err)
				if len(page) == 0 {
					break
				}
				all = append(all, page...)
			}
			require.Equal(t, want, all)
		}
	}
	look := func() {
		t.Helper()
		found([]string{"truck-05"}, "truck-0")
		found([]string{"TRUCK-10", "TRUCK-12"}, "TRUCK-")
		found([]string{"truck-05", "truck-11"}, "truck")
		found([]string{"TRUCK%12"}, "TRUCK%")
		found(nil, "bus")
	}
	look()

	// The walk passes many others, not all, and a prefix of digits none.
	b.exec("insert into processor.devices (device_id, stream) values ('van-x', 'any'), ('9', 'any')")
	b.exec("insert into public.positions select (p).* from (select jsonb_populate_record(p, jsonb_build_object('device_id', 'van-' || n)) as p from public.positions p, generate_series(10000, 20100) n where device_id = 'truck-05') x")
	for i, device := range []string{"VAN-1", "VAN-3", "12", "120", "7"} {
		b.exec(insertPosition, device, dayOf(i))
	}
	found([]string{"VAN-1"}, "VAN-")
	found([]string{"van-x"}, "van-x")
	found([]string{"12", "120"}, "12")
	found([]string{"9"}, "9")

	b.exec("insert into processor.devices (device_id, stream) select distinct device_id, 'any' from public.positions on conflict do nothing")
	b.exec("insert into processor.device_scans (stream, from_us, to_us, done_at) values ('any', 0, 0, now())")
	b.exec("delete from public.positions")
	look()
}

// Each statement looks into few of many partitions.
func TestTheTrackOfADeviceIsReadAcrossPartitions(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const days = 130
	b.partitionByDay(days)
	for _, day := range []int{3, 60, 70, 129} {
		for minute := range 4 {
			b.exec(insertPosition, "device-1", dayOf(day).Add(time.Duration(minute)*time.Minute))
		}
	}
	b.exec(insertPosition, "device-2", dayOf(100))
	lists := store.NewLists(b.pool, scope, 10*time.Second)
	first, last, err := lists.Span(t.Context(), "device-1", dayOf(129))
	require.NoError(t, err)
	require.Equal(t, []time.Time{dayOf(3), dayOf(70).Add(3 * time.Minute)}, []time.Time{first.UTC(), last.UTC()})
	first, last, err = lists.Span(t.Context(), "nobody", dayOf(129))
	require.NoError(t, err)
	require.True(t, first.IsZero() && last.IsZero())
	devices, err := lists.Devices(t.Context(), "device", "", 10)
	require.NoError(t, err)
	require.Equal(t, []string{"device-1", "device-2"}, devices)
	track := func(limit int) (at []time.Time, sampled bool) {
		t.Helper()
		points, sampled, err := lists.Track(t.Context(), "device-1", dayOf(3).Add(time.Minute), dayOf(129).Add(3*time.Minute), limit, telemetry.Eligibility{})
		require.NoError(t, err)
		for _, p := range points {
			at = append(at, p.Time.UTC())
		}
		return at, sampled
	}
	all, sampled := track(14)
	require.False(t, sampled)
	require.Len(t, all, 3+4+4+3)
	require.IsIncreasing(t, unix(all))
	few, sampled := track(4)
	require.True(t, sampled)
	require.Equal(t, []time.Time{dayOf(3).Add(time.Minute), dayOf(60), dayOf(70), dayOf(129)}, few)
	one, sampled := track(1)
	require.True(t, sampled)
	require.Equal(t, few[:1], one)
}

func unix(list []time.Time) (us []int64) {
	for _, at := range list {
		us = append(us, at.UnixMicro())
	}
	return us
}
