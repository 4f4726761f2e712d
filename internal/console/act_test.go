package console_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// visitor is a client with cookies.
type visitor struct {
	t    *testing.T
	base string
	*http.Client
}

func visit(t *testing.T, p *servicetest.Process) *visitor {
	t.Helper()
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	return &visitor{t: t, base: "http://" + p.Addr() + "/console/", Client: &http.Client{Jar: jar, Timeout: 30 * time.Second}}
}

// post sends a form and returns the status and the page it led to.
func (v *visitor) post(path string, form url.Values, headers ...string) (int, string) {
	v.t.Helper()
	req, err := http.NewRequestWithContext(v.t.Context(), http.MethodPost, v.base+path, strings.NewReader(form.Encode()))
	require.NoError(v.t, err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := v.Do(req)
	require.NoError(v.t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(v.t, err)
	return res.StatusCode, string(text)
}

func (v *visitor) get(path string) string {
	v.t.Helper()
	res, err := v.Get(v.base + path)
	require.NoError(v.t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(v.t, err)
	return string(text)
}

var pageToken = regexp.MustCompile(`data-token="([^"]*)"`)

func (v *visitor) token() string { return pageToken.FindStringSubmatch(v.get(""))[1] }

func TestActingNeedsProofAPageAReasonAndAConfirmation(t *testing.T) {
	dep := servicetest.New(t)
	p := dep.Run(servicetest.FourShards, "CONSOLE=write", "CONSOLE_TOKEN="+token)
	p.AwaitReady()
	holds := func() int {
		n, err := dep.Count("select count(*) from processor.holds")
		require.NoError(t, err)
		return n
	}
	v := visit(t, p)
	form := url.Values{"reason": {"because"}, "confirmed": {"yes"}}
	status, page := v.post("actions/pause", form)
	require.Equal(t, http.StatusForbidden, status)
	require.Contains(t, page, "sign in first")
	status, page = v.post("sign-in/", url.Values{"name": {"alice"}, "secret": {"guessed it, did I not"}})
	require.Equal(t, http.StatusForbidden, status)
	require.Contains(t, page, "not the one of CONSOLE_TOKEN_FILE")
	status, _ = v.post("sign-in/", url.Values{"name": {"alice"}, "secret": {token}}, "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site")
	require.Equal(t, http.StatusForbidden, status)
	status, page = v.post("sign-in/", url.Values{"name": {"alice \u202e<b>"}, "secret": {token}})
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, page, "alice \\u202e&lt;b&gt;")
	require.NotContains(t, page, token)

	good := v.token()
	form.Set("token", good)
	for what, try := range map[string]struct {
		form    url.Values
		headers []string
		want    string
	}{
		"no token of a page":   {url.Values{"reason": {"x"}, "confirmed": {"yes"}}, nil, "not made by a page"},
		"a forged origin":      {form, []string{"Origin", "https://evil.example"}, "not made by a page"},
		"another site":         {form, []string{"Sec-Fetch-Site", "cross-site"}, "not made by a page"},
		"a token of nobody":    {url.Values{"token": {"1.x"}, "reason": {"x"}, "confirmed": {"yes"}}, nil, "not made by a page"},
		"an old token, resaid": {url.Values{"token": {"1764000000" + good[strings.IndexByte(good, '.'):]}, "reason": {"x"}, "confirmed": {"yes"}}, nil, "not made by a page"},
		"no reason":            {url.Values{"token": {good}, "confirmed": {"yes"}}, nil, "say why"},
		"no confirmation":      {url.Values{"token": {good}, "reason": {"x"}}, nil, "confirm the action"},
	} {
		status, page = v.post("actions/pause", try.form, try.headers...)
		require.GreaterOrEqual(t, status, 400, what)
		require.Contains(t, page, try.want, what)
	}
	require.Zero(t, holds())
	for _, name := range []string{"old", "new"} { // P9: of what is replaced in many dead letters
		long := url.Values{"token": {good}, "class": {"invalid"}, "old": {"a"}, "new": {"b"}}
		long.Set(name, strings.Repeat("a", 2001))
		status, page = v.post("actions/dlq-replace-dry-run", long)
		require.Equal(t, http.StatusBadRequest, status)
		require.Contains(t, page, "has at most 2000 bytes")
	}
	res, err := v.Get(v.base + "actions/pause?token=" + good)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, http.StatusNotFound, res.StatusCode, "an address alone does nothing")

	status, page = v.post("actions/pause", form)
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, page, "Pause the fleet")
	testenv.Wait(t, 10*time.Second, func() error {
		if n := holds(); n != 1 {
			return fmt.Errorf("%d holds", n)
		}
		return nil
	})
	n, err := dep.Count(`select count(*) from processor.audit where who = 'alice \u202e<b>' and detail->>'reason' = 'because' and action in ('console pause', 'hold fleet')`)
	require.NoError(t, err)
	require.Equal(t, 2, n)

	// A session ends where it is meant to.
	other := visit(t, p)
	status, _ = other.post("sign-in/", url.Values{"name": {"carol"}, "secret": {token}})
	require.Equal(t, http.StatusOK, status)
	status, _ = other.post("sign-out/", url.Values{})
	require.Equal(t, http.StatusForbidden, status, "not without a page")
	status, page = other.post("sign-out/", url.Values{"token": {other.token()}})
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, page, "Sign in to act")

	// The session is good at every instance, and at none with another token.
	two := dep.Run(servicetest.FourShards, "CONSOLE=write", "CONSOLE_TOKEN="+token)
	two.AwaitReady()
	v.base = "http://" + two.Addr() + "/console/"
	require.NotContains(t, v.get(""), "Sign in to act")
	three := dep.Run(servicetest.FourShards, "CONSOLE=write", "CONSOLE_TOKEN=another token of 16")
	three.AwaitReady()
	v.base = "http://" + three.Addr() + "/console/"
	require.Contains(t, v.get(""), "Sign in to act")
}

func TestAProxyNamesTheOperatorAndNobodyElseDoes(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	trusted := dep.Run(servicetest.FourShards, "CONSOLE=write", "CONSOLE_USER_HEADER=X-User", "CONSOLE_TRUSTED_PROXIES=127.0.0.0/8")
	trusted.AwaitReady()
	other := dep.Run(servicetest.FourShards, "CONSOLE=write", "CONSOLE_USER_HEADER=X-User", "CONSOLE_TRUSTED_PROXIES=10.0.0.0/8")
	other.AwaitReady()
	readOnly := dep.Run(servicetest.FourShards)
	readOnly.AwaitReady()
	off := dep.Run(servicetest.FourShards, "CONSOLE=off")
	off.AwaitReady()
	ask := func(p *servicetest.Process) string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.Addr()+"/console/", nil)
		require.NoError(t, err)
		req.Header.Set("X-User", "bob")
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		if res.StatusCode == http.StatusNotFound {
			return "off"
		}
		policy := res.Header.Get("Content-Security-Policy")
		require.Contains(t, policy, "default-src 'none'")
		require.NotContains(t, policy, "unsafe")
		text, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return string(text)
	}
	require.Contains(t, ask(trusted), "bob")
	require.NotContains(t, ask(other), "bob")
	require.Contains(t, ask(readOnly), "read only")
	require.NotContains(t, ask(readOnly), "<form method=\"post\"")
	require.Equal(t, "off", ask(off))
	status, page := visit(t, readOnly).post("actions/pause", url.Values{"reason": {"x"}, "confirmed": {"yes"}}, "X-User", "bob")
	require.Equal(t, http.StatusForbidden, status)
	require.Contains(t, page, "CONSOLE=write")
}

// watchers opens streams and returns how many got an update.
func watchers(t *testing.T, p *servicetest.Process, n int) (got int, statuses map[int]int, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	statuses = make(map[int]int)
	var asked, ended sync.WaitGroup
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 0}}
	for range n {
		asked.Add(1)
		ended.Go(func() {
			var once sync.Once
			defer once.Do(asked.Done)
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Addr()+"/console/events/", nil)
			if err != nil {
				return
			}
			res, err := client.Do(req)
			if err != nil {
				return
			}
			defer res.Body.Close()
			mu.Lock()
			statuses[res.StatusCode]++
			mu.Unlock()
			lines := bufio.NewScanner(res.Body)
			lines.Buffer(nil, 4<<20)
			for lines.Scan() {
				if strings.HasPrefix(lines.Text(), "data: ") {
					mu.Lock()
					got++
					mu.Unlock()
					once.Do(asked.Done)
				}
			}
		})
	}
	asked.Wait()
	mu.Lock()
	defer mu.Unlock()
	return got, statuses, func() { cancel(); ended.Wait() }
}

func TestStreamsAreBounded(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	sessions := func() int {
		n, err := dep.Count("select count(*) from pg_stat_activity where application_name like '%console%' and datname = current_database() and pid <> pg_backend_pid()")
		require.NoError(t, err)
		return n
	}
	require.Zero(t, sessions(), "closed it costs nothing")
	before, err := p.Metric("process_resident_memory_bytes")
	require.NoError(t, err)
	got, statuses, end := watchers(t, p, 50)
	require.GreaterOrEqual(t, got, 50)
	require.Equal(t, map[int]int{200: 50}, statuses)
	require.LessOrEqual(t, sessions(), 2, "read once for all")
	after, err := p.Metric("process_resident_memory_bytes")
	require.NoError(t, err)
	t.Logf("50 streams: %.1f MB more", (after-before)/1e6)
	_, statuses, endMore := watchers(t, p, 5)
	require.Equal(t, map[int]int{503: 5}, statuses, "50 in all")
	status, _, err := p.Readiness()
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status, "a probe gets in")
	endMore()
	end()
}
