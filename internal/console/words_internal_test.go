package console

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/docs/runbook"
	"github.com/trmtracking/processor/internal/history"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/protocol"
)

func TestNoLinkEscapesAQueryTwice(t *testing.T) {
	// What stands behind ? in an address is escaped as one value, so a query that has
	// names and values must come with the whole address.
	whole := regexp.MustCompile(`(?:href|action)="(?:\{\{root\}\})?[^"{]*\?\{\{\.`)
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

// shown renders a part of the overview.
func shown(t *testing.T, part string, v view) string {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, templatesOf(Root).ExecuteTemplate(&b, part, overviewData{view: v}))
	return b.String()
}

// troubled is a fleet of one with open incidents.
func troubled() view {
	now := time.Now()
	v := view{Now: now, Redis: reading[operator.RedisView]{At: now}, Postgres: reading[operator.PostgresView]{At: now}}
	v.Redis.Value.Members, v.Redis.Value.DeadLetters = []coordination.Member{{}}, 60
	v.Postgres.Value.Failing = operator.Failing{Unread: 60, Last: time.Date(2026, 11, 29, 15, 9, 1, 0, time.UTC)}
	v.Postgres.Value.Incidents = []operator.Incident{
		{Kind: protocol.SilentMember, Subject: "two.A", Opened: now, Detail: json.RawMessage(`{"since": "2026-11-29T14:47:35Z", "shards": [1, 2, 3], "host": "vm", "pid": 8513, "version": "v1"}`)},
		{Kind: protocol.GroupLost, Subject: "2026-11-29T15:09:01.487Z", Opened: now},
		{Kind: protocol.StalledShard, Subject: "3", Opened: now},
		{Kind: protocol.DeadLettersAlike, Subject: "decode/payload.speed/type", Opened: now},
		{Kind: protocol.RedisFailedOver, Subject: "1-1", Opened: now, Closed: &now},
	}
	return v
}

func TestEveryOpenIncidentIsSaidInWordsWithThePageWhereOneActs(t *testing.T) {
	page := shown(t, "verdict", troubled())
	for _, want := range []string{
		"the group in Redis was gone; the whole stream is read again", `href="/console/incidents/#ledger"`,
		"shard 3 does not advance while others do", `href="/console/shards/"`, `href="/console/runbook/ProcessorShardStalled"`,
		"several entries failed alike: decode/payload.speed/type", `href="/console/dead-letters/?fingerprint=decode%2Fpayload.speed%2Ftype"`,
		"instance two.A fell silent", "kill -KILL 8513 on host vm if it still runs, and start another unless a supervisor does", `href="/console/#members"`,
		"60 entries cannot be read and are tried again; they become dead letters after the last attempt at about 15:09:01 UTC", `href="/console/dead-letters/#deferred-list"`,
	} {
		require.Contains(t, page, want)
	}
	require.NotContains(t, page, "incident group_lost")
	require.NotContains(t, page, "older state", "it is closed")
	require.Equal(t, 1, bytes.Count([]byte(page), []byte("the group in Redis was gone")), "the verdict is not repeated")

	v := troubled()
	v.Redis.Value.DeadLetters = 0
	require.NotContains(t, shown(t, "verdict", v), "several entries failed alike", "all were replayed or dropped")
}

func TestASilentMemberStaysInTheListForAnHour(t *testing.T) {
	page := shown(t, "members", troubled())
	require.Contains(t, page, "silent since 14:47:35 (stopped or frozen)")
	require.Contains(t, page, "3 shards moved to others; pid 8513 on host <bdi>vm</bdi>")
	v := troubled()
	v.Redis.Value.Members = append(v.Redis.Value.Members, coordination.Member{Instance: "two", Incarnation: "A"})
	require.NotContains(t, shown(t, "members", v), "silent since", "it is back")
}

func TestTheChartsShowTheSpanThatIsChosen(t *testing.T) {
	now := time.Date(2026, 11, 29, 15, 0, 0, 0, time.UTC)
	w := history.Window{Samples: []history.Sample{{At: now.Add(-50 * time.Minute).UnixMilli()}}}
	for query, want := range map[string]time.Duration{"": time.Hour, "?span=5m0s": 5 * time.Minute, "?span=20m0s": 20 * time.Minute, "?span=9m0s": time.Hour, "?span=-5m0s": time.Hour, "?span=x": time.Hour} {
		chosen := rangesOf(httptest.NewRequest(http.MethodGet, "/console/shards/"+query, nil), "shards/")
		require.Equal(t, want, spanOf(chosen.Chosen, &w, now), query)
	}
	c := &Console{templates: templatesOf(Root)}
	shown := c.html("ranges", rangesOf(httptest.NewRequest(http.MethodGet, "/console/shards/?span=5m0s", nil), "shards/"))
	require.Contains(t, shown, `<a href="/console/shards/?span=20m0s">`)
	require.NotContains(t, shown, `?span=5m0s`, "it is shown already")
}

func TestThePagesOfTheRunbookAreRenderedAndTheirLinksLeadSomewhere(t *testing.T) {
	c, err := New(Config{}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	list, err := fs.Glob(runbook.Pages, "*.md")
	require.NoError(t, err)
	require.Greater(t, len(list), 30)
	show := func(address string) (int, string) {
		w := httptest.NewRecorder()
		c.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, address, nil))
		return w.Code, w.Body.String()
	}
	link := regexp.MustCompile(`href="([^"#]+\.md)`)
	tables := 0
	for _, name := range list {
		code, page := show(Root + "runbook/" + name)
		require.Equal(t, http.StatusOK, code, name)
		_, page, _ = strings.Cut(page, `<section id="runbook"`)
		require.Contains(t, page, "<h1>", name)
		for _, source := range []string{"```", "<!-- outcome", "](", "runbook="} {
			require.NotContains(t, page, source, name)
		}
		tables += strings.Count(page, "<table>")
		for _, to := range link.FindAllStringSubmatch(page, -1) {
			code, _ := show(Root + "runbook/" + to[1])
			require.Equal(t, http.StatusOK, code, "%s links to %s", name, to[1])
		}
	}
	require.Positive(t, tables)
}
