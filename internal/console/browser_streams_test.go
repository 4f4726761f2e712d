package console_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

func TestEachOfSeveralStreamsHasItsScreensAndItsActionsInTheBrowser(t *testing.T) {
	testenv.Slow(t)
	if testing.Short() {
		t.Skip("starts servers and a browser; not in short mode")
	}
	t.Parallel()
	env := testenv.OwnServers(t, devenv.Options{Redis: true, Postgres: true})
	names := []string{"telemetry:teltonika", "telemetry:queclink", "{telemetry:north/east}"}
	settings := []string{"REDIS_TELEMETRY_STREAM=" + strings.Join(names, ","), "SHARDS=8", "DLQ_RETRY_DELAYS=100ms"}
	var streams []*fleet
	for _, name := range names {
		dep := &servicetest.Deployment{T: t, RedisURL: env.Redis.URL(), PostgresURL: env.Postgres.URL(), Stream: name, Group: "processor"}
		streams = append(streams, &fleet{env: env, Deployment: dep})
	}
	one := streams[0].Run(append(settings, "INSTANCE_ID=one", "CONSOLE=write", "CONSOLE_TOKEN="+token)...)
	one.AwaitReady()
	streams[0].Run(append(settings, "INSTANCE_ID=two")...).AwaitReady()
	root := func(i int) string { return "streams/" + url.PathEscape(names[i]) + "/" }
	// No two of a stream are alike: that would be an incident as soon as the leader has looked.
	faults := []string{`"latitude":91`, `"latitude":9,"latitude":9`, `"latitude":"91"`}
	for i, s := range streams {
		s.feed(100*i, 20*(i+1))
		var bad [][]string
		for n := range i + 1 {
			record := servicetest.InvalidRecord(fmt.Sprintf("unlucky-%d", i), int64(n))
			record[len(record)-1] = strings.Replace(record[len(record)-1], faults[0], faults[n], 1)
			bad = append(bad, record)
		}
		s.Publish(bad...)
		s.AwaitDeadLetters(int64(i + 1))
	}

	// The page of all streams: a line of each, and the sum.
	o := operate(t, one, "dora") // signs in there, for all of them
	row := func(i int) string {
		return fmt.Sprintf("document.querySelectorAll('#stream-list tbody tr')[%d].innerText", i)
	}
	for i, name := range names {
		o.await(row(i), name)
		o.await(row(i), "healthy")
		o.await(row(i), "one 4, two 4")
		o.await(fmt.Sprintf("document.querySelectorAll('#stream-list tbody tr')[%d].cells[5].innerText", i), fmt.Sprint(i+1))
	}
	o.await("document.querySelector('#stream-list tfoot').innerText", "6")
	o.await("document.getElementById('live').textContent", "live")
	require.Equal(t, "all streams 0", o.eval("document.querySelector('.switch summary').innerText + ' ' + document.querySelectorAll('nav[aria-label=Screens]').length"))
	testenv.Wait(t, 20*time.Second, func() error { // all rates are known
		if text := o.eval("document.querySelectorAll('#stream-list tfoot th, #stream-list tfoot td')[4].innerText"); len(text) < 3 {
			return fmt.Errorf("%s a second", text)
		}
		return nil
	})
	o.picture("streams", 1280)
	sessions, err := streams[0].Count("select count(*) from pg_stat_activity where application_name = 'processor/console'")
	require.NoError(t, err)
	require.Positive(t, sessions)
	require.LessOrEqual(t, sessions, 4, "the consoles of all streams share their sessions")

	// Each screen is of the stream that its address names, and leads to the same one of the others.
	for i, name := range names {
		for _, path := range []string{"", "shards/", "dead-letters/", "devices/", "map/", "incidents/", "requests/", "settings/"} {
			o.visit(root(i) + path)
			require.Equal(t, name+" · processor", o.eval("document.querySelector('.switch summary').innerText"), path)
			for k := range names {
				require.Equal(t, "/console/"+root(k)+path, o.eval(fmt.Sprintf("document.querySelectorAll('.switch a')[%d].getAttribute('href')", k+1)))
			}
			require.Equal(t, "0", o.eval(fmt.Sprintf("[...document.querySelectorAll('main a, main form, nav[aria-label=Screens] a')].filter(x => !(x.getAttribute('href') ?? x.getAttribute('action')).startsWith(%q)).length", "/console/"+root(i))), path)
			require.Equal(t, "dora", o.eval("document.querySelector('.who bdi').innerText"), path)
		}
		o.visit(root(i))
		o.await("document.getElementById('live').textContent", "live")
		o.await("document.getElementById('figures').innerText", fmt.Sprintf("Dead letters\n%d", i+1))
		o.visit(root(i) + "dead-letters/")
		o.await("document.getElementById('letter-groups').innerText", fmt.Sprintf("%d dead letters", i+1))
		o.visit(root(i) + "map/")
		o.await("document.getElementById('live-count').innerText", fmt.Sprintf(" of %d", 20*(i+1)))
	}
	o.press(".switch a[href$='queclink/map/']")
	o.await("document.querySelector('.switch summary').innerText", names[1])

	// An action is of the stream of its page.
	o.visit(root(2))
	o.act("pause", "button.danger", "Pause shard 3 of stream "+names[2]+"?", "look at it", "shard 3 is paused by dora: look at it", "shard", "3")
	o.back("Overview")
	require.Equal(t, "/console/"+root(2), o.eval("location.pathname"))
	streams[0].AwaitCount(1, "select count(*) from processor.holds where stream = '"+names[2]+"' and kind = 'shard' and subject = '3'")
	streams[0].AwaitCount(1, "select count(*) from processor.holds")
	o.visit(root(0) + "shards/")
	o.await("document.querySelectorAll('table.shards tbody tr')[3].innerText", "at work")
	o.visit(root(2) + "shards/")
	o.await("document.querySelectorAll('table.shards tbody tr')[3].innerText", "paused")

	o.visit(root(1) + "dead-letters/?class=invalid")
	o.act("dlq-drop", "button.danger", "Drop 2 dead letters of class invalid? A copy stays in the archive.", "of a test", "2 of 2", "count", "2")
	o.back("Dead letters")
	require.Equal(t, "/console/"+root(1)+"dead-letters/?class=invalid", o.eval("location.pathname + location.search"))
	for i, want := range []int64{1, 0, 3} {
		require.Equal(t, want, streams[i].Client().XLen(t.Context(), names[i]+":dlq").Val(), names[i])
	}
	base := o.base
	o.base += root(1)
	o.audited("dora", [2]string{"console dlq-drop", "of a test"}, [2]string{"console dlq-drop", names[1]}, [2]string{"console pause", names[2]}, [2]string{"hold shard", names[2]})
	o.base = base
	o.quiet()
	for path, want := range map[string]string{"streams/telemetry:none/": "no stream telemetry:none", "shards/": "choose a stream"} {
		o.do(chromedp.Navigate(o.base + path))
		o.await("document.body.innerText", want)
	}
	o.visit(strings.TrimSuffix(root(2)+"shards/", "/")) // typed without the slash
	require.Equal(t, "/console/"+root(2)+"shards/", o.eval("location.pathname"))
	o.visit(root(0))
	o.press(".who button")
	o.await("document.querySelector('.who').innerText", "Sign in to act")
	o.visit(root(2))
	require.Contains(t, o.text(), "Sign in to act")
}
