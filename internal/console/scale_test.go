package console_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
	"github.com/trmtracking/processor/loadtest/testbed"
)

func TestManyDeadLettersAndALongTrackAreShownInTime(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	b := open(t)
	b.base = "http://" + p.Addr() + "/console/"
	letters, fixes := testenv.Size(10_000, 100_000), testenv.Size(100_000, 1_000_000)
	began := time.Now()
	fillDeadLetters(t, dep, letters)
	dep.Exec(`insert into positions (device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
select 'long', '2026-01-01'::timestamptz + n * interval '10 seconds', '2026-01-01'::timestamptz + n * interval '10 seconds', 48 + n / 1e6, 11 + sin(n / 1e4), 0, 0, 50, 9, 0, '8', '{}'
from generate_series(1, $1) as n`, fixes)
	dep.Exec("analyze positions")
	t.Logf("%d dead letters and %d positions are there after %v", letters, fixes, time.Since(began).Round(time.Millisecond))

	memory := func() string {
		var mb []string
		for _, name := range []string{"process_resident_memory_bytes", "go_memstats_heap_inuse_bytes"} {
			n, err := p.Metric(name)
			require.NoError(t, err)
			mb = append(mb, fmt.Sprintf("%.1f", n/1e6))
		}
		return strings.Join(mb, " MB resident, ") + " MB of heap"
	}
	t.Logf("before: %s", memory())
	began = time.Now()
	b.visit("dead-letters/")
	b.await("document.getElementById('letter-groups').innerText", cli.Thousands(int64(letters))+" dead letters")
	t.Logf("their groups are shown after %v", time.Since(began).Round(time.Millisecond))
	began = time.Now()
	b.visit("dead-letters/?class=decode")
	b.await("document.getElementById('letter-list').innerText", "next 50")
	t.Logf("a filtered list after %v", time.Since(began).Round(time.Millisecond))
	seen := make(map[string]bool)
	for page := range 3 {
		b.await("document.querySelectorAll('#letter-list tbody tr').length", "50")
		for id := range strings.FieldsSeq(fmt.Sprint(b.eval("[...document.querySelectorAll('#letter-list tbody a[href*=\"letter/?id=\"]')].map((a) => a.innerText).join(' ')"))) {
			require.False(t, seen[id], "%s is on two pages", id)
			seen[id] = true
		}
		require.Len(t, seen, 50*(page+1))
		b.visit(fmt.Sprint(b.eval("[...document.querySelectorAll('#letter-list a')].find((a) => a.innerText === 'next 50').href.split('/console/')[1]")))
	}
	b.visit("dead-letters/?class=decode&after=9999999999999-0")
	b.await("document.getElementById('letter-list').innerText", "No more dead letters match")
	b.visit("dead-letters/?class=decode&after=nonsense")
	b.await("document.getElementById('letter-list').innerText", "begin at the first one")

	began = time.Now()
	b.visit("devices/?device=long")
	b.await("document.querySelector('.map').dataset.shown", "4000")
	t.Logf("the last day after %v", time.Since(began).Round(time.Millisecond))
	began = time.Now()
	b.visit("devices/?device=long&from=2026-01-01T00:00:00&to=2026-12-31T00:00:00")
	b.await("document.getElementById('device-tables').innerText", "sampled")
	b.await("document.querySelector('.map').dataset.shown > 0", "true") // drawn after the table is there
	t.Logf("all positions after %v: %s points", time.Since(began).Round(time.Millisecond), b.eval("document.querySelector('.map').dataset.shown"))
	t.Logf("after: %s", memory())
	b.quiet()
}

// fillDeadLetters adds dead letters, half of class decode and half of class invalid.
func fillDeadLetters(t *testing.T, dep *servicetest.Deployment, letters int) {
	t.Helper()
	client := dep.Client()
	for from := range letters / 1000 {
		pipe := client.Pipeline()
		for i := range 1000 {
			n := from*1000 + i
			class := []string{"decode", "invalid"}[n%2]
			pipe.Do(t.Context(), "xadd", dep.Stream+":dlq", "*", "device_id", "device-"+class, "payload", "{}", "dlq_class", class, "dlq_error", "broken", "dlq_field", "payload",
				"dlq_source_id", "1764000000000-1", "dlq_shard", "0", "dlq_attempts", "3", "dlq_first_failed", "2026-08-01T10:00:00.000000Z", "dlq_last_failed", "2026-08-01T10:00:00.000000Z",
				"dlq_instance", "one", "dlq_version", "1", "dlq_fingerprint", class+"/payload/test", "dlq_original_fields", "2")
		}
		_, err := pipe.Exec(t.Context())
		require.NoError(t, err)
	}
}

func TestManyFiltersDevicesAndExportsAtOnceAreAskedForOneByOne(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	fillDeadLetters(t, dep, 20_000)
	client := dep.Client()
	connections := func() int { // each command under way has one
		list, err := client.ClientList(t.Context()).Result()
		require.NoError(t, err)
		return strings.Count(list, "name=processor/console")
	}
	v := visit(t, p)
	var readers sync.WaitGroup
	var refused atomic.Int64
	for i := range 50 {
		path := []string{"dead-letters/?text=%d", "dead-letters/letter/?id=%d-1", "devices/?device=%d", "export/dead-letters.ndjson?text=%d"}[max(0, i-20)/10]
		readers.Go(func() {
			res, err := v.Get(v.base + fmt.Sprintf(path, i))
			if err != nil {
				t.Errorf("%s: %v", path, err)
				return
			}
			defer res.Body.Close()
			switch _, _ = io.Copy(io.Discard, res.Body); {
			case res.StatusCode == http.StatusServiceUnavailable && strings.HasPrefix(path, "export"):
				refused.Add(1)
			case res.StatusCode != http.StatusOK:
				t.Errorf("%s: status %d", path, res.StatusCode)
			}
		})
	}
	dep.Publish(servicetest.Records(0, 100)...)
	testenv.Wait(t, 20*time.Second, func() error {
		n, err := dep.Count("select count(*) from positions")
		if err == nil && n != 100 {
			err = fmt.Errorf("%d are stored", n)
		}
		return err
	})
	readers.Wait()
	require.LessOrEqual(t, connections(), 8)
	t.Logf("%d connections, %d exports refused", connections(), refused.Load())
	testenv.Wait(t, 30*time.Second, func() error {
		if page := v.get("dead-letters/?class=decode"); !strings.Contains(page, "50 of 10,000") {
			return fmt.Errorf("the list is not there: %s", page)
		}
		return nil
	})
}

func TestFiftyViewersAreServedAndOneMoreIsTold(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	ctx, cancel := context.WithCancel(t.Context())
	var updates [50]atomic.Int64
	var viewers sync.WaitGroup
	ask := func(ctx context.Context, path string, then func(res *http.Response)) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Addr()+path, nil)
		if err != nil {
			return
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return
		}
		defer res.Body.Close()
		then(res)
	}
	view := func(n int) {
		viewers.Go(func() {
			ask(ctx, "/console/events/", func(res *http.Response) {
				lines := bufio.NewScanner(res.Body)
				lines.Buffer(nil, 4<<20)
				for lines.Scan() {
					if strings.HasPrefix(lines.Text(), "data: ") {
						updates[n].Add(1)
					}
				}
			})
		})
	}
	sent := 0
	measure := func(open int) {
		t.Helper()
		began, from := time.Now(), testbed.CPUOf(p.PID())
		had := updates[0].Load()
		testenv.Wait(t, 40*time.Second, func() error {
			dep.Publish(servicetest.Record(servicetest.IMEI, int64(sent))) // figures that move
			sent++
			for n := range open {
				if got := updates[n].Load(); got < had+5 && (n == 0 || got < 5) {
					return fmt.Errorf("viewer %d has %d updates", n, got)
				}
			}
			return nil
		})
		memory, err := p.Metric("process_resident_memory_bytes")
		require.NoError(t, err)
		t.Logf("%d open: %.1f ms of CPU a second, %.1f MB", open, float64((testbed.CPUOf(p.PID())-from).Milliseconds())/time.Since(began).Seconds(), memory/1e6)
	}
	view(0)
	measure(1)
	for n := 1; n < len(updates); n++ {
		view(n)
	}
	measure(len(updates))
	var status int
	var told string
	ask(t.Context(), "/console/events/", func(res *http.Response) {
		text, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		status, told = res.StatusCode, res.Header.Get("Retry-After")+" "+string(text)
	})
	require.Equal(t, http.StatusServiceUnavailable, status)
	require.Regexp(t, "^30 (?s).*50 pages are watched already", told)
	ask(t.Context(), "/readyz", func(res *http.Response) { status = res.StatusCode })
	require.Equal(t, http.StatusOK, status, "probes get in")
	cancel()
	viewers.Wait()
	testenv.Wait(t, 20*time.Second, func() error {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ask(ctx, "/console/events/", func(res *http.Response) { status = res.StatusCode })
		if status != http.StatusOK {
			return fmt.Errorf("after they are gone: %d", status)
		}
		return nil
	})
}
