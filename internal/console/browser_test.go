package console_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

const token = "a token of sixteen"

// hostile is text that a browser or a reader would take for something else.
var hostile = []string{
	"<script>document.title='owned'</script>", "\"><img src=x onerror=document.title='owned'>", "\u202egnp.exe", "\x1b[31mred\x07", "{{.Secret}}", "javascript:alert(1)",
}

// webPage is a headless browser with one page.
type webPage struct {
	t    *testing.T
	ctx  context.Context //nolint:containedctx // the library's handle of the page
	base string

	mu     sync.Mutex
	errors []string
}

// open starts Debian's browser, or skips the test where there is none.
func open(t *testing.T) *webPage {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Skip("there is no chromium: scripts/setup.sh tests installs it")
	}
	allocator, cancel := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.ExecPath(path))...)
	t.Cleanup(cancel)
	ctx, cancelPage := chromedp.NewContext(allocator)
	t.Cleanup(cancelPage)
	b := &webPage{t: t, ctx: ctx}
	messages := chromedp.Console(ctx)
	go func() {
		for m, err := range messages {
			if err != nil {
				return
			}
			b.mu.Lock()
			b.errors = append(b.errors, fmt.Sprintf("%+v", m))
			b.mu.Unlock()
		}
	}()
	b.do(chromedp.EmulateViewport(1280, 900))
	return b
}

func (b *webPage) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	require.NoError(b.t, chromedp.Do(ctx, steps...))
}

// visit opens a page and waits until it is live. A page that is just following its action to
// another one aborts the first attempt.
func (b *webPage) visit(path string) {
	b.t.Helper()
	testenv.Wait(b.t, 40*time.Second, func() error {
		ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
		defer cancel()
		err := chromedp.Do(ctx, chromedp.Navigate(b.base+path))
		if err != nil && !strings.Contains(err.Error(), "net::ERR_ABORTED") {
			require.NoError(b.t, err)
		}
		return err
	})
	b.await("document.getElementById('live')?.textContent", "live")
}

// eval returns the value of an expression as text.
func (b *webPage) eval(expression string) string {
	b.t.Helper()
	value, err := b.tryEval(expression)
	require.NoError(b.t, err, expression)
	return value
}

func (b *webPage) tryEval(expression string) (string, error) {
	ctx, cancel := context.WithTimeout(b.ctx, 20*time.Second)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[string]("String("+expression+")"))
}

// await waits until an expression contains a text, across pages: one that goes away while
// it is asked does not answer.
func (b *webPage) await(expression, want string) {
	b.t.Helper()
	testenv.Wait(b.t, 40*time.Second, func() error {
		have, err := b.tryEval(expression)
		if err != nil {
			return fmt.Errorf("%s: %w", expression, err)
		}
		if !strings.Contains(have, want) {
			return fmt.Errorf("want %q in %s, have %.1500s", want, expression, have)
		}
		return nil
	})
	// What a format does with a value that it cannot show.
	misfit, err := b.tryEval(`document.body?.innerText.match(/.{0,40}(%!|0xc0[0-9a-f]{6}).{0,40}/)?.[0] ?? ""`)
	require.Empty(b.t, misfit, "%v", err)
}

// text returns what the page shows.
func (b *webPage) text() string { return b.eval("document.body.innerText") }

// quiet requires that the browser reported nothing.
func (b *webPage) quiet() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Empty(b.t, b.errors, "the browser reports nothing")
}

// picture writes a screenshot to the folder in CONSOLE_PICTURES, if it is set.
func (b *webPage) picture(name string, width int64) {
	b.t.Helper()
	dir := os.Getenv("CONSOLE_PICTURES")
	if dir == "" {
		return
	}
	b.do(chromedp.EmulateViewport(width, 800), chromedp.Sleep(300*time.Millisecond))
	ctx, cancel := context.WithTimeout(b.ctx, 20*time.Second)
	defer cancel()
	shot, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	require.NoError(b.t, err)
	_, err = png.Decode(bytes.NewReader(shot))
	require.NoError(b.t, err)
	require.Less(b.t, len(shot), 300_000, name)
	require.NoError(b.t, os.WriteFile(filepath.Join(dir, name+".png"), shot, 0o644))
	b.do(chromedp.EmulateViewport(1280, 900))
}

// fleet is two instances on servers of their own.
type fleet struct {
	*servicetest.Deployment
	env      *devenv.Env
	one, two *servicetest.Process
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	t.Parallel()
	env := testenv.OwnServers(t, devenv.Options{Redis: true, Postgres: true})
	f := &fleet{env: env, Deployment: &servicetest.Deployment{T: t, RedisURL: env.Redis.URL(), PostgresURL: env.Postgres.URL(), Stream: "telemetry:teltonika", Group: "processor"}}
	f.one = f.Run("INSTANCE_ID=one", "SHARDS=16", "CONSOLE=write", "CONSOLE_TOKEN="+token, "DLQ_RETRY_DELAYS=100ms")
	f.one.AwaitReady()
	f.two = f.Run("INSTANCE_ID=two", "SHARDS=16", "DLQ_RETRY_DELAYS=100ms")
	f.two.AwaitReady()
	return f
}

func (f *fleet) base() string { return "http://" + f.one.Addr() + "/console/" }

// feed publishes so many moving devices, numbered from first, until the test ends.
func (f *fleet) feed(first, devices int) {
	ctx, cancel := context.WithCancel(context.Background())
	client := f.Client()
	var feeding sync.WaitGroup
	f.T.Cleanup(func() { cancel(); feeding.Wait() })
	feeding.Go(func() {
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for second := int64(0); ; second++ {
			var list [][]string
			for i := range devices {
				list = append(list, servicetest.MovingRecord(fmt.Sprintf("35630704%07d", first+i), second*20+int64(i)))
			}
			for _, fields := range list {
				args := []any{"xadd", f.Stream, "*"}
				for _, x := range fields {
					args = append(args, x)
				}
				_ = client.Do(ctx, args...).Err() // Redis may be away on purpose
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
}

const fences = `{"type":"FeatureCollection","features":[
{"type":"Feature","properties":{"id":"depot","name":"<b>Depot</b> \u202e\u0000","kind":"circle","radius_m":60},"geometry":{"type":"Point","coordinates":[11.5015,48.1]}},
{"type":"Feature","properties":{"id":"town","name":"Town"},"geometry":{"type":"Polygon","coordinates":[[[11.5025,48.0985],[11.506,48.0985],[11.506,48.1015],[11.5025,48.1015],[11.5025,48.0985]]]}}]}`

// hoverFirstChart puts the pointer on the newest point of the first chart and returns
// what is told of it.
const hoverFirstChart = `(() => {
  const chart = document.querySelector("svg.chart"), box = chart.getBoundingClientRect();
  const last = [...chart.querySelector("path.line").getAttribute("d").matchAll(/[ML]([\d.]+)/g)].pop();
  if (!last) return "";
  chart.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: box.left + last[1] / 720 * box.width, clientY: box.top + 50 }));
  return document.querySelector(".tip").innerText;
})()`

func TestEveryScreenShowsARunningFleetAndHostileTextAsText(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers and a browser; not in short mode")
	}
	f := newFleet(t)
	b := open(t)
	b.base = f.base()
	f.Ask(0, nil, "geofence", "import", servicetest.File(t, strings.ReplaceAll(fences, `\u0000`, "")))
	f.feed(0, 40)
	var bad [][]string
	for i, text := range hostile {
		bad = append(bad, servicetest.InvalidRecord(text, int64(i)), []string{"device_id", text, "codec", text, "ts", "1", "payload", "{" + text}, servicetest.Record(text, int64(i)))
	}
	long := strings.Repeat("<i>x</i>", 1250) // 10 kB
	bad = append(bad, servicetest.InvalidRecord(long, 1), []string{long, long, "device_id", "d", "payload", long})
	for i := range 30 {
		bad = append(bad, servicetest.InvalidRecord(fmt.Sprintf("35630704%07d", i), int64(i)))
	}
	f.Publish(bad...)
	testenv.Wait(t, 40*time.Second, func() error {
		if n := f.Client().XLen(t.Context(), f.Stream+":dlq").Val(); n < 40 {
			return fmt.Errorf("%d dead letters", n)
		}
		return nil
	})

	b.visit("")
	b.await("document.getElementById('verdict').innerText", "several entries failed alike") // the incident of alike failures
	b.await("document.getElementById('members').innerText", "two.")
	require.Contains(t, b.text(), "leader")
	require.Equal(t, "0 telemetry:teltonika · processor", b.eval("document.querySelectorAll('.switch, a[href*=streams]').length + ' ' + document.querySelector('.scope').innerText"), "there is one stream")
	b.picture("overview", 1280)
	point := regexp.MustCompile(`^\d\d:\d\d:\d\d UTC · in \S+ /s · finished \S+ /s$`)
	testenv.Wait(t, 40*time.Second, func() error { // of the first sample the rates are unknown
		if text := fmt.Sprint(b.eval(hoverFirstChart)); !point.MatchString(text) {
			return fmt.Errorf("the chart says %q", text)
		}
		return nil
	})
	b.visit("shards/")
	require.Equal(t, "16", b.eval("document.querySelectorAll('table.shards tbody tr').length"))
	b.await("document.querySelector('table.shards').innerText", "at work")
	b.picture("shards", 1280)
	b.visit("map/")
	b.await("document.querySelector('.map').dataset.shown", "4")
	b.await("document.getElementById('live-count').innerText", " of 4")
	b.picture("live-map", 1280)
	b.visit("devices/?device=356307040000003")
	b.await("document.querySelector('.map').dataset.fences", "2")
	b.await("document.getElementById('device-tables').innerText", "enter")
	b.picture("device", 1280)
	b.visit(strings.TrimPrefix(b.eval("document.querySelector('#device-tables a[href*=crossing]').getAttribute('href')"), "/console/"))
	b.await("document.getElementById('crossing').innerText", "agrees")
	b.await("document.getElementById('crossing').innerText", "later fix")
	b.await("document.getElementById('crossing').innerText", "inserted")
	b.visit("devices/?prefix=3563")
	require.Contains(t, b.text(), "356307040000001")
	b.visit("dead-letters/")
	b.await("document.getElementById('letter-groups').innerText", "dead letters")
	b.picture("dead-letters", 1280)
	id := f.Client().XRangeN(t.Context(), f.Stream+":dlq", "-", "+", 1).Val()[0].ID
	b.visit("dead-letters/letter/?id=" + id)
	b.await("document.getElementById('letter').innerText", "at fault")
	b.picture("dead-letter", 1280)
	b.visit("dead-letters/?text=latitude")
	b.await("document.getElementById('letter-list').innerText", "<script>document.title='owned'</script>")
	for _, path := range []string{"dead-letters/archive/", "incidents/", "requests/", "settings/"} {
		b.visit(path)
		require.NotContains(t, b.text(), "unknown so far", path)
		b.picture(strings.ReplaceAll(strings.Trim(path, "/"), "/", "-"), 1280)
	}
	require.NotContains(t, b.text(), token, "secrets never")
	for _, text := range hostile {
		b.visit("devices/crossing/?device=356307040000003&fence=" + escape(text))
		require.Equal(t, "Crossing · Processor", b.eval("document.title"), "nothing was executed: %q", text)
		b.visit("devices/?device=" + escape(text))
		require.Equal(t, "Devices · Processor", b.eval("document.title"), "nothing was executed: %q", text)
		require.Equal(t, "0", b.eval("document.querySelectorAll('main script, main img').length"))
		shown := b.text()
		require.NotContains(t, shown, "\u202e")
		require.NotContains(t, shown, "\x1b")
	}
	b.quiet()

	// Dark, and on a phone.
	_, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}})
	require.NoError(t, err)
	b.visit("")
	b.picture("overview-dark-phone", 390)
	b.do(chromedp.EmulateViewport(390, 800))
	require.Equal(t, "true", b.eval("document.documentElement.scrollWidth <= 390"), "nothing is wider than a phone")
	b.quiet()
}

func escape(s string) string {
	var out strings.Builder
	for _, c := range []byte(s) {
		fmt.Fprintf(&out, "%%%02x", c)
	}
	return out.String()
}

func TestAnInstanceIsFrozenAndKilledAndServersAreAwayWhileAPageIsOpen(t *testing.T) {
	testenv.Slow(t)
	if testing.Short() {
		t.Skip("starts servers and a browser; not in short mode")
	}
	f := newFleet(t)
	b := open(t)
	b.base = f.base()
	f.feed(0, 10)
	b.visit("shards/")
	b.await("document.querySelector('table.shards').innerText", "two.")
	owners := "[...document.querySelectorAll('table.shards tbody tr')].map(r => r.cells[1].innerText.trim().slice(1).trim().split('.')[0]).join()"
	all := strings.TrimSuffix(strings.Repeat("one,", 16), ",")

	f.two.Signal(syscall.SIGSTOP)
	began := time.Now()
	b.await(owners, all)
	t.Logf("frozen: the page shows all shards with the other instance after %v", time.Since(began).Round(100*time.Millisecond))
	f.two.Signal(syscall.SIGCONT)
	b.await(owners, "two")
	require.NoError(t, f.two.Kill())
	began = time.Now()
	b.await(owners, all)
	t.Logf("killed: after %v", time.Since(began).Round(100*time.Millisecond))
	b.visit("")
	b.await("document.getElementById('verdict').innerText", "instance two.")
	b.await("document.getElementById('verdict').innerText", "kill -KILL ")
	lost := "[...document.querySelectorAll('#members tbody tr')].find(r => r.cells[1].innerText.startsWith('two.') && r.innerText.includes('silent since'))?.innerText"
	b.await(lost, "(stopped or frozen)")
	b.await(lost, " moved to others; pid ")
	b.picture("killed", 1280)

	require.NoError(t, f.env.Redis.Pause())
	b.await("document.getElementById('notice').innerText", "Redis does not answer")
	require.Contains(t, b.text(), "shown as of", "the rest is shown with its age")
	b.picture("redis-away", 1280)
	require.NoError(t, f.env.Redis.Resume())
	b.await("String(document.getElementById('notice').innerText.length)", "0")

	require.NoError(t, f.env.Postgres.Pause())
	b.await("document.getElementById('notice').innerText", "Postgres does not answer")
	require.Contains(t, b.eval("document.getElementById('members').innerText"), "one.")
	require.NoError(t, f.env.Postgres.Resume())
	b.await("String(document.getElementById('notice').innerText.length)", "0")

	f.one.Signal(syscall.SIGSTOP)
	testenv.Wait(t, 40*time.Second, func() error {
		if have := b.eval("document.getElementById('live').innerText"); !strings.Contains(have, "nothing heard") && !strings.Contains(have, "does not answer") {
			return errors.New(have)
		}
		return nil
	})
	f.one.Signal(syscall.SIGCONT)
	b.await("document.getElementById('live').innerText", "live")
}
