package console_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// operate opens a console as an operator who answers every question with yes.
func operate(t *testing.T, p *servicetest.Process, name string) *operatorPage {
	t.Helper()
	o := &operatorPage{webPage: open(t), asked: make(chan string, 100)}
	o.base = "http://" + p.Addr() + "/console/"
	opened := make(chan string, 100)
	require.NoError(t, chromedp.Listen(o.ctx, func(ev any) {
		if e, ok := ev.(*page.EventJavascriptDialogOpening); ok {
			opened <- e.Message
		}
	}))
	go func() { // ends with the browser
		for {
			select {
			case <-o.ctx.Done():
				return
			case question := <-opened:
				o.asked <- question
				_, _ = chromedp.Call(o.ctx, page.HandleJavaScriptDialog, page.HandleJavaScriptDialogParams{Accept: true}) // the page may be gone
			}
		}
	}()
	o.do(chromedp.Navigate(o.base))
	o.press("a[href$='sign-in/']")
	o.await("document.title", "Sign in")
	o.do(chromedp.SendKeys("input[name=name]", name), chromedp.SendKeys("input[name=secret]", token))
	o.press("main button")
	o.await("document.querySelector('.who')?.innerText", name)
	return o
}

// operatorPage is a page in which an operator acts.
type operatorPage struct {
	*webPage
	asked chan string
}

func (o *operatorPage) press(selector string) {
	o.t.Helper()
	o.await("document.querySelectorAll("+strconv.Quote(selector)+").length > 0", "true")
	o.eval("document.querySelector(" + strconv.Quote(selector) + ").click()") // at once: what is live is replaced at any time
}

// act fills in the form of an action, presses a button of it, answers the question
// and waits until the result contains a text. A reason is given and confirmed
// unless it is empty.
func (o *operatorPage) act(action, button, question, reason, result string, values ...string) {
	o.t.Helper()
	o.begin(action, button, question, reason, values...)
	o.await(job, result)
	o.await("document.querySelectorAll('.job-ended').length", "1")
}

const job = "document.getElementById('job')?.innerText"

// next does what the page of a dry run offers, with the values of its form.
func (o *operatorPage) next(action, question, reason, result string) {
	o.t.Helper()
	o.do(chromedp.SetValue(".next [name=reason]", reason))
	o.press(".next [name=confirmed]")
	before := o.eval("location.search")
	o.press(".next [formaction$='/" + action + "']")
	select {
	case asked := <-o.asked:
		require.Equal(o.t, question, asked)
	case <-time.After(20 * time.Second):
		require.Fail(o.t, "nothing was asked", question)
	}
	o.await("location.search !== "+strconv.Quote(before), "true")
	o.await(job, result)
	o.await("document.querySelectorAll('.job-ended').length", "1")
}

func (o *operatorPage) begin(action, button, question, reason string, values ...string) {
	o.t.Helper()
	form := fmt.Sprintf("form[action$='/actions/%s'] ", action)
	for i := 0; i+1 < len(values); i += 2 {
		o.do(chromedp.SetValue(form+"[name="+values[i]+"]", values[i+1]))
	}
	if reason != "" {
		o.do(chromedp.SetValue(form+"[name=reason]", reason))
		o.press(form + "[name=confirmed]")
	}
	o.press(form + button)
	if question != "" {
		select {
		case asked := <-o.asked:
			require.Equal(o.t, question, asked)
		case <-time.After(20 * time.Second):
			require.Fail(o.t, "nothing was asked", question)
		}
	}
	o.await("document.title", "Action")
	select {
	case asked := <-o.asked:
		require.Fail(o.t, "asked for no reason", asked)
	default:
	}
}

// back returns from the page of an action.
func (o *operatorPage) back(title string) {
	o.t.Helper()
	o.press("#job > p:last-child a")
	o.await("document.title", title)
	o.await("document.getElementById('live')?.textContent", "live")
}

// track is the device time of a second of MovingRecord in a form.
func track(second int64) string {
	return time.Unix(1_700_000_000+second, 0).UTC().Format("2006-01-02T15:04:05")
}

// audited requires that the page of the audit shows these, each with the operator
// and a text of its detail.
func (o *operatorPage) audited(who string, rows ...[2]string) {
	o.t.Helper()
	o.visit("requests/")
	for _, row := range rows {
		require.NotEqual(o.t, "0", o.eval(fmt.Sprintf(
			"[...document.querySelectorAll('#audit-list tbody tr')].filter(r => r.cells[1].innerText === %q && r.cells[2].innerText === %q && r.cells[5].innerText.includes(%q)).length", who, row[0], row[1])),
			"%v is in the audit: %s", row, o.eval("document.getElementById('audit-list').innerText"))
	}
}

func TestDeadLettersAreEditedReplayedDroppedRestoredAndExportedInTheBrowser(t *testing.T) {
	testenv.Slow(t)
	if testing.Short() {
		t.Skip("starts servers and a browser; not in short mode")
	}
	const large, invalid = 1200, 3
	dep := servicetest.New(t)
	first := dep.Run(servicetest.FourShards, "MAX_PAYLOAD_BYTES=1024")
	first.AwaitReady()
	var entries [][]string
	for i := range int64(large) {
		fields := servicetest.MovingRecord(fmt.Sprintf("large-%d", i%20), i)
		payload := &fields[len(fields)-1]
		*payload = strings.Replace(*payload, `"attributes":{`, `"attributes":{"1":"`+strings.Repeat("x", 1024)+`"`, 1)
		entries = append(entries, fields)
	}
	for i := range int64(invalid) {
		entries = append(entries, servicetest.InvalidRecord("unlucky", i))
	}
	dep.Publish(entries...)
	dep.AwaitDeadLetters(large + invalid)
	require.Zero(t, first.Terminate())
	// The bound is raised: what was too large can be replayed.
	p := dep.Run(servicetest.FourShards, "CONSOLE=write", "CONSOLE_TOKEN="+token)
	p.AwaitReady()
	o := operate(t, p, "alice")

	// A group, one of it, an edit.
	o.visit("dead-letters/")
	o.await("document.getElementById('letter-groups').innerText", "1,203 dead letters")
	o.press("#letter-groups a[href*=latitude]")
	o.await("document.getElementById('letter-list')?.innerText", "unlucky")
	require.Equal(t, "3", o.eval("document.querySelectorAll('#letter-list tbody tr').length"))
	o.press("#letter-list tbody tr:first-child a")
	o.await("document.getElementById('letter')?.innerText", "at fault")
	o.await("document.getElementById('letter').innerText", "does not decode")
	letter := regexp.MustCompile(`\d+-\d+`).FindString(o.eval("location.search"))
	keep := "Keep this edit of payload.latitude of dead letter " + letter
	o.act("dlq-edit", "[formaction$=preview]", "", "", "it decodes now", "value", "41.25")
	o.await(job, "- payload.latitude=91\n+ payload.latitude=41.25")
	o.picture("edit", 1280)
	o.back("Dead letter")
	require.NotContains(t, o.eval("document.getElementById('letter').innerText"), "As edited", "a preview changes nothing")
	require.Equal(t, "41.25", o.eval("document.querySelector('#letter-edit textarea').value"), "the form keeps what it had")
	o.act("dlq-edit", "[formaction$=preview]", "", "", "it decodes now")
	o.next("dlq-edit", keep+"?", "swapped sign", "it decodes now")
	o.back("Dead letter")
	o.await("document.getElementById('letter').innerText", "As edited")
	o.await("document.getElementById('letter').innerText", "41.250000")
	require.Equal(t, "1", o.eval("document.querySelectorAll('#letter code.fault, #letter pre .fault').length"), "what was corrected is at fault no more")
	o.act("dlq-edit", "[formaction$=preview]", "", "", "it was edited like this before", "value", "41.25")
	require.Equal(t, "Keep and replay", o.eval("[...document.querySelectorAll('.next button')].map(b => b.innerText).join()"), "the edit is kept already")
	o.back("Dead letter")
	o.act("dlq-retry", "[formaction$='dry-run']", "", "", "1 stored")
	o.back("Dead letter")
	n, err := dep.Stored()
	require.NoError(t, err)
	require.Zero(t, n, "a dry run changes nothing")
	o.act("dlq-retry", "button.primary", "Replay dead letter "+letter+" of device unlucky?", "edited", "1 accepted")
	dep.AwaitStored(1, 10*time.Second)
	o.await(job, "replayed as entry ")
	require.Equal(t, "/console/devices/?device=unlucky", o.eval("document.querySelector('#job a[href*=devices]').getAttribute('href')"))
	o.press("#job a[href*='letter/']")
	o.await("document.getElementById('letter')?.innerText", "does not decode")

	// What cannot be decoded is refused, with words of a dry run and of a replay.
	o.visit("dead-letters/?device=unlucky")
	o.act("dlq-dry-run", "button", "", "", "0 of 2 would be replayed, 2 would fail: edit them first")
	o.back("Dead letters")
	o.act("dlq-canary", "button", "Replay 2 dead letters of device unlucky?", "in doubt", "0 replayed, 2 refused and kept: edit them, then replay")
	require.Equal(t, "2", o.eval("document.querySelectorAll('#job a[href*=\"letter/\"]').length"), "they are a click away")
	o.visit("dead-letters/?device=unlucky")
	o.press("form[action$='dlq-replace'] [name=regexp]")
	o.act("dlq-replace", "[formaction$='dry-run']", "", "", "2 of 2 would be edited, and 2 of these decode then; nothing was changed", "old", `"latitude":9(\d)`, "new", `"latitude":4$1`)
	o.await(job, "- payload.latitude=91\n  + payload.latitude=41")
	o.back("Dead letters")
	require.Equal(t, `"latitude":9(\d) true`, o.eval("(f => f.old.value + ' ' + f.regexp.checked)(document.querySelector('form[action$=dlq-replace]').elements)"), "the form keeps what it had")
	o.act("dlq-replace", "[formaction$='dry-run']", "", "", "2 of 2 would be edited")
	o.next("dlq-replace", `Replace "latitude":9(\d) with "latitude":4$1 in 2 dead letters?`, "sign and digit", "2 of 2 edited, and 2 of these decode now")
	o.visit("dead-letters/?device=unlucky")
	o.act("dlq-replace", "[formaction$='dry-run']", "", "", "no payload of the 2 selected has this text", "old", "nowhere", "new", "x")
	o.visit("dead-letters/?device=unlucky")
	o.act("dlq-replace", "button.primary", `Replace "latitude":41 with "latitude":91 in the payload of 2 dead letters of device unlucky?`, "as it was", "2 of 2 edited, and 0 of these decode now", "old", `"latitude":41`, "new", `"latitude":91`)
	o.visit("dead-letters/?device=unlucky")
	require.Equal(t, "/console/export/dead-letters.ndjson?device=unlucky", o.eval("document.querySelector('#letter-filter a[href*=ndjson]').getAttribute('href')"))

	// A filter, a dry run, a canary, then all with progress, cancelled once.
	o.visit("dead-letters/")
	o.do(chromedp.SetValue("#letter-filter select", "too_large"))
	o.press("#letter-filter button")
	o.await("document.getElementById('letter-list')?.innerText", "next 50")
	o.act("dlq-dry-run", "button", "", "", "1,000 stored")
	o.back("Dead letters")
	o.act("dlq-canary", "button", "Replay the 10 oldest of 1,200 dead letters of class too_large?", "bound raised", "10 accepted")
	dep.AwaitStored(11, 10*time.Second)
	o.back("Dead letters")
	o.begin("dlq-retry", "button", "Replay 1,190 dead letters of class too_large?", "bound raised", nil...)
	o.await(job, " of 1,190")
	require.Equal(t, "1", o.eval("document.querySelectorAll('#job progress[value]').length"))
	o.picture("progress", 1280)
	o.press("#job-cancel button")
	require.Equal(t, "Cancel it? What is done stays done.", <-o.asked)
	o.await(job, "cancelled")
	o.await("getComputedStyle(document.getElementById('job-cancel')).display", "none")
	left := dep.Client().XLen(t.Context(), dep.Stream+":dlq").Val() - (invalid - 1)
	require.Positive(t, left)
	require.Less(t, left, int64(large-10))
	o.back("Dead letters")
	o.act("dlq-retry", "button", fmt.Sprintf("Replay %s of class too_large?", cli.Count(int(left), "dead letter")), "the rest", fmt.Sprintf("%d accepted", min(left, 1000)))
	dep.AwaitStored(large+1, 20*time.Second)

	// Dropped, restored.
	o.visit("dead-letters/")
	o.await("document.getElementById('letter-groups').innerText", "2 dead letters")
	o.press("#letter-groups a[href*=latitude]")
	o.await("document.getElementById('letter-list')?.innerText", "unlucky")
	o.act("dlq-drop", "button", "Drop 2 dead letters of invalid/payload.latitude/range? A copy stays in the archive.", "a test of the tracker", "2 of 2", "count", "2")
	require.Zero(t, dep.Client().XLen(t.Context(), dep.Stream+":dlq").Val())
	o.visit("dead-letters/")
	o.await("document.getElementById('letter-groups').innerText", "There are no dead letters.")
	o.press("#letter-filter a[href$='archive/']")
	o.await("document.title", "Archived dead letters")
	o.eval("(document.querySelector('#archive input[name=device]').value = 'unlucky', document.querySelector('#archive input[name=open]').click(), document.querySelector('#archive button').click())")
	o.await("document.querySelectorAll('#archive tbody tr').length", "2")
	o.picture("archive", 1280)
	o.act("dlq-restore", "button", "Put what was dropped of device unlucky back among the dead letters?", "dropped too soon", "2 restored")
	o.visit("dead-letters/?device=unlucky")
	o.await("document.querySelectorAll('#letter-list tbody tr').length", "2")

	// Exported.
	dir := t.TempDir()
	_, err = chromedp.CallBrowser(o.ctx, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{Behavior: browser.SetDownloadBehaviorBehaviorAllow, DownloadPath: dir})
	require.NoError(t, err)
	o.press("#letter-filter a[href*=ndjson]")
	testenv.Wait(t, 20*time.Second, func() error {
		text, err := os.ReadFile(filepath.Join(dir, "dead-letters.ndjson"))
		if err == nil && (bytes.Count(text, []byte("\n")) != 2 || !bytes.Contains(text, []byte("unlucky"))) {
			err = fmt.Errorf("exported: %s", text)
		}
		return err
	})

	o.audited("alice", [][2]string{
		{"console dlq-edit", "swapped sign"},
		{"dlq edit", ""},
		{"console dlq-canary", "bound raised"},
		{"console dlq-retry", "the rest"},
		{"dlq retry", "too_large"},
		{"console dlq-drop", "a test of the tracker"},
		{"dlq drop", "latitude"},
		{"console dlq-restore", "dropped too soon"},
		{"dlq restore", ""},
	}...)
	o.quiet()
}

func TestWhatIsPressedStaysUntilItIsReleased(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers and a browser; not in short mode")
	}
	dep := servicetest.New(t)
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	b := open(t)
	b.base = "http://" + p.Addr() + "/console/"
	b.visit("")
	const link = "document.querySelector('#figures a')"
	b.await("(globalThis.updates = 0, globalThis.pressed = "+link+", pressed.dispatchEvent(new PointerEvent('pointerdown', { bubbles: true })), new EventSource(document.body.dataset.events).onmessage = () => { updates++ })", "=>")
	for i := range 5 {
		dep.Publish(servicetest.Record(servicetest.IMEI, int64(i)))
	}
	dep.AwaitStored(5, 20*time.Second)
	b.await("updates >= 4", "true")
	require.Equal(t, "true", b.eval("pressed.isConnected"), "a click reaches it")
	b.eval("pressed.dispatchEvent(new PointerEvent('pointerup', { bubbles: true }))")
	dep.Publish(servicetest.Record(servicetest.IMEI, 5)) // or nothing new may be to be shown
	b.await("pressed.isConnected", "false")
	b.quiet()
}

func TestTheFleetAndADeviceAreActedOnInTheBrowser(t *testing.T) {
	testenv.Slow(t)
	if testing.Short() {
		t.Skip("starts servers and a browser; not in short mode")
	}
	dep := servicetest.New(t)
	one := dep.Run(servicetest.FourShards, "INSTANCE_ID=one", "CONSOLE=write", "CONSOLE_TOKEN="+token)
	one.AwaitReady()
	dep.Run(servicetest.FourShards, "INSTANCE_ID=two").AwaitReady()
	dep.Ask(0, nil, "geofence", "import", servicetest.File(t, strings.ReplaceAll(fences, `\u0000`, "")))
	o := operate(t, one, "bob")
	member := func(name string) string {
		return fmt.Sprintf("[...document.querySelectorAll('#members tbody tr')].find(r => r.cells[1].innerText.startsWith(%q))", name+".")
	}
	drive := func(from, to int64) {
		var entries [][]string
		for second := from; second < to; second += 5 {
			entries = append(entries, servicetest.MovingRecord(servicetest.IMEI, second))
		}
		dep.Publish(entries...)
	}

	// Paused, the fleet keeps what arrives in the stream.
	drive(0, 100)
	dep.AwaitStored(20, 20*time.Second)
	o.visit("")
	o.act("pause", "button.danger", "Pause the dispatching of the whole fleet?", "migration", "dispatching is paused by bob: migration")
	o.back("Overview")
	o.await("document.getElementById('verdict').innerText", "dispatching is paused by bob: migration")
	o.await("document.getElementById('verdict').innerText", "Resume on the console's overview")
	driven := int64(100) // what is sent before the dispatcher knows is dispatched
	testenv.Wait(t, 20*time.Second, func() error {
		drive(driven, driven+25)
		driven += 25
		if have := o.eval("document.getElementById('figures').innerText"); strings.Contains(have, "lag 0 ") {
			return errors.New(have)
		}
		return nil
	})
	end := max(700, driven+100)
	drive(driven, end)
	all := int(end / 5)
	o.picture("paused", 1280)
	o.act("pause", "[formaction$=resume]", "Resume the dispatching of the whole fleet?", "migrated", "nothing is held back")
	dep.AwaitStored(all, 20*time.Second)
	o.back("Overview")
	o.act("pause", "button.danger", "Pause shard 2?", "look at it", "shard 2 is paused", "shard", "2")
	o.visit("shards/")
	o.await("document.querySelectorAll('table.shards tbody tr')[2].innerText", "Resume on the console's overview")
	o.visit("")
	o.act("pause", "[formaction$=resume]", "Resume shard 2?", "seen", "nothing is held back", "shard", "2")
	o.visit("shards/")
	o.await("document.querySelectorAll('table.shards tbody tr')[2].innerText", "at work")

	// Drained, a member owns nothing.
	o.visit("")
	o.await(member("two")+".cells[3].innerText", "2")
	require.Equal(t, "choose one two", o.eval("[...document.querySelectorAll('#fleet-actions option')].map(x => x.innerText).join(' ')"), "an instance is drained, whatever member it is")
	o.act("drain", "button.danger", "Drain two? Its shards move to the others.", "its host is replaced", "two is drained by bob: its host is replaced", "instance", "two")
	o.back("Overview")
	o.await(member("two")+".cells[2].innerText", "drained")
	o.await(member("two")+".cells[3].innerText", "0")
	o.picture("drained", 1280)
	o.visit("")
	require.Contains(t, o.eval("document.getElementById('fleet-actions').innerText"), "two (drained)")
	o.act("drain", "[formaction$=undrain]", "Undrain two? It may own shards again.", "it stays", "nothing is held back", "instance", "two")
	o.back("Overview")
	o.await(member("two")+".cells[2].innerText", "working")
	o.await(member("two")+".cells[3].innerText", "2")

	// Without a begin nothing is sent: the browser says so at the field.
	o.press("form[action$='/replay'] [formaction$=dry-run]")
	require.Equal(t, "Overview · Processor from", o.eval("document.title + ' ' + document.activeElement.name"))
	o.visit("")

	// Replayed, first for show. All is stored: all are duplicates.
	o.act("replay", "[formaction$=dry-run]", "", "", cli.Thousands(int64(all))+" entries", "from", "2026-01-01T00:00:01")
	o.await(job, "Dry run: replay the stream since 2026-01-01T00:00:01Z")
	o.await(job, "entries of 1 device")
	o.back("Overview")
	o.act("replay", "button.primary", "Read the stream again since 2026-01-01 00:00:01, for device "+servicetest.IMEI+"?", "in doubt", cli.Thousands(int64(all))+" entries", "from", "2026-01-01T00:00:01", "device", servicetest.IMEI)

	// A crossing is gone by hand: verified, explained, recomputed.
	crossings := func() (n int) {
		n, err := dep.Count("select count(*) from processor.timing_records")
		require.NoError(t, err)
		return n
	}
	testenv.Wait(t, 10*time.Second, func() error {
		if n := crossings(); n != 4 {
			return fmt.Errorf("%d crossings", n)
		}
		return nil
	})
	o.visit("devices/?device=" + servicetest.IMEI)
	o.act("verify", "button", "", "", "done")
	o.back("Devices")
	o.await("document.querySelectorAll('#device-tables a[href*=crossing]').length", "4")
	o.press("#device-tables a[href*='fence=town']")
	o.await("document.getElementById('crossing')?.innerText", "agrees")
	o.visit("devices/?device=" + servicetest.IMEI)
	dep.Exec("delete from processor.timing_records where fence_id = 'town' and kind = 'exit'")
	o.act("verify", "button", "", "", "ask for a recompute")
	o.back("Devices")
	o.act("recompute", "button", "Recompute the crossings of device "+servicetest.IMEI+"?", "one is gone", "state: done")
	require.Equal(t, 4, crossings())
	o.back("Devices")
	o.act("verify", "button", "", "", "done")
	o.back("Devices")
	o.act("rehydrate", "button", "Have the owner of device "+servicetest.IMEI+" load its state again?", "to be sure", "state: done")

	// A wrong stretch of its track, which made crossings: counted, flagged, taken back.
	o.back("Devices")
	wrong := []string{"from", track(105), "to", track(240)}
	faulty := func() int {
		n, err := dep.Count("select count(*) from positions where faulty")
		require.NoError(t, err)
		return n
	}
	decided := func() int {
		n, err := dep.Count(fmt.Sprintf("select count(*) from processor.timing_records where later_ts between '%sZ' and '%sZ'", track(105), track(240)))
		require.NoError(t, err)
		return n
	}
	o.act("faulty", "[formaction$='dry-run']", "", "", "would be flagged as faulty: 28 positions from "+track(105)+"Z to "+track(240)+"Z; ", wrong...)
	require.Zero(t, faulty(), "a dry run changes nothing")
	o.back("Devices")
	require.Equal(t, wrong[1]+" "+wrong[3], o.eval("['from', 'to'].map(x => document.querySelector('#wrong-stretch [name=' + x + ']').value.slice(0, 19)).join(' ')"), "the form keeps its values")
	o.act("faulty", "[formaction$='dry-run']", "", "", "28 positions")
	o.await("document.querySelector('.next button').innerText", "Flag these 28 positions")
	o.next("faulty", "Flag 28 positions of device "+servicetest.IMEI+" as faulty?", "antenna loose", "flagged as faulty: 28 positions from "+track(105)+"Z to "+track(240)+"Z; ")
	o.await(job, "state: done")
	require.Equal(t, 28, faulty())
	require.Zero(t, decided(), "no faulty position decides a crossing")
	o.back("Devices")
	o.act("verify", "button", "", "", "done")
	o.back("Devices")
	o.visit("devices/?device=" + servicetest.IMEI + "&from=" + wrong[1] + "&to=" + wrong[3])
	o.await("document.getElementById('device-tables').innerText", track(235)+"Z")
	o.await("[...document.querySelectorAll('#device-tables .tag')].filter(x => x.innerText === 'faulty').length", "27") // up to, not with, the last one
	o.picture("faulty", 1280)
	o.press("#device-tables tbody tr:last-child [data-fill=from]")
	o.press("#device-tables tbody tr:last-child [data-fill=to]")
	require.Equal(t, track(105)+" "+track(105), o.eval("['from', 'to'].map(x => document.querySelector('#wrong-stretch [name=' + x + ']').value.slice(0, 19)).join(' ')"), "a row fills in the form")
	o.press("#device-search a:nth-of-type(1)")
	o.await("document.querySelector('#device-search h2')?.innerText", servicetest.IMEI)
	o.await("document.querySelector('#device-search [name=to]')?.value.slice(0, 19)", wrong[1]) // the window before
	o.visit("devices/?device=" + servicetest.IMEI)
	o.act("faulty", "[formaction$='take-back']", "Take the flag back from the positions of device "+servicetest.IMEI+" from "+strings.Replace(wrong[1], "T", " ", 1)+" to "+strings.Replace(wrong[3], "T", " ", 1)+"?", "it was right", "flagged as faulty no more: 28 positions", wrong...)
	o.await(job, "state: done")
	require.Zero(t, faulty())
	require.Equal(t, 4, crossings())
	require.Equal(t, 1, decided())

	o.visit("requests/")
	for _, kind := range []string{"recompute", "rehydrate"} {
		require.Equal(t, "done bob", o.eval(fmt.Sprintf("(() => { const r = [...document.querySelectorAll('#request-list tbody tr')].find(r => r.cells[2].innerText === %q); return r.cells[1].innerText.replace(/[^a-z]/g, '') + ' ' + r.cells[5].innerText })()", kind)))
	}
	o.picture("requests-done", 1280)
	o.audited("bob", [][2]string{
		{"console pause", "migration"},
		{"hold fleet", "migration"},
		{"console resume", "migrated"},
		{"console drain", "its host is replaced"},
		{"console undrain", "it stays"},
		{"console replay", "in doubt"},
		{"console recompute", "one is gone"},
		{"console rehydrate", "to be sure"},
		{"console faulty", "antenna loose"},
		{"faulty", "antenna loose"},
		{"console faulty-take-back", "it was right"},
		{"faulty taken back", "it was right"},
	}...)
	o.quiet()
}
