package httpserver_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/trmtracking/processor/internal/httpserver"
	"github.com/trmtracking/processor/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func config(checks ...string) httpserver.Config {
	return httpserver.Config{Host: "127.0.0.1", Checks: checks, CheckTimeout: 5 * time.Second}
}

// serve runs a server for the length of a test.
func serve(t *testing.T, cfg httpserver.Config, reg *prometheus.Registry) *httpserver.Server {
	t.Helper()
	s, err := httpserver.New(cfg, reg, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	run(t, s)
	return s
}

func run(t *testing.T, s *httpserver.Server) {
	t.Helper()
	require.NoError(t, s.Listen(t.Context()))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
}

func request(t *testing.T, method, url string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	require.NoError(t, err)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, string(body)
}

func readyz(t *testing.T, s *httpserver.Server) (int, httpserver.Readiness) {
	t.Helper()
	status, body := request(t, http.MethodGet, "http://"+s.Addr()+"/readyz")
	var r httpserver.Readiness
	require.NoError(t, json.Unmarshal([]byte(body), &r), body)
	require.Equal(t, status == http.StatusOK, r.Ready)
	return status, r
}

// await waits until /readyz has a status.
func await(t *testing.T, s *httpserver.Server, want int) {
	t.Helper()
	testenv.Wait(t, 30*time.Second, func() error {
		if status, _ := readyz(t, s); status != want {
			return fmt.Errorf("status %d, want %d", status, want)
		}
		return nil
	})
}

func ok(context.Context) error { return nil }

// Promise 2.
func TestReadyOnlyWhenEveryExpectedCheckAnswers(t *testing.T) {
	s := serve(t, config("redis", "postgres"), prometheus.NewRegistry())
	status, r := readyz(t, s)
	require.Equal(t, http.StatusServiceUnavailable, status)
	require.Equal(t, []string{"postgres", "redis"}, r.NotReady)

	s.Ready("redis", ok)
	status, r = readyz(t, s)
	require.Equal(t, http.StatusServiceUnavailable, status)
	require.Equal(t, []string{"postgres"}, r.NotReady)
	require.Equal(t, map[string]string{"redis": "ok", "postgres": "not started yet"}, r.Checks)

	s.Ready("postgres", ok)
	status, r = readyz(t, s)
	require.Equal(t, http.StatusOK, status)
	require.Empty(t, r.NotReady)

	s.Ready("schema", func(context.Context) error { return errors.New("positions has no index positions_ts") })
	status, r = readyz(t, s)
	require.Equal(t, http.StatusServiceUnavailable, status)
	require.Equal(t, "positions has no index positions_ts", r.Checks["schema"])
}

func TestDrainingIsNotReadyButAlive(t *testing.T) {
	s := serve(t, config("redis"), prometheus.NewRegistry())
	s.Ready("redis", ok)
	status, _ := readyz(t, s)
	require.Equal(t, http.StatusOK, status)
	s.SetDraining()
	status, r := readyz(t, s)
	require.Equal(t, http.StatusServiceUnavailable, status)
	require.Equal(t, []string{"shutdown"}, r.NotReady)
	alive, _ := request(t, http.MethodGet, "http://"+s.Addr()+"/healthz")
	require.Equal(t, http.StatusOK, alive)
}

func TestResultsAreUsedForASecondThenRenewed(t *testing.T) {
	s := serve(t, config("redis"), prometheus.NewRegistry())
	var asked, broken atomic.Int64
	s.Ready("redis", func(context.Context) error {
		asked.Add(1)
		if broken.Load() > 0 {
			return errors.New("gone")
		}
		return nil
	})
	begin := time.Now()
	for range 20 {
		readyz(t, s)
	}
	require.LessOrEqual(t, asked.Load(), 1+int64(time.Since(begin)/time.Second))
	broken.Store(1)
	await(t, s, http.StatusServiceUnavailable)
	broken.Store(0)
	await(t, s, http.StatusOK)
}

// Promise 3.
func TestAHangingCheckBlocksNoOther(t *testing.T) {
	cfg := config("redis", "postgres")
	cfg.CheckTimeout = 50 * time.Millisecond
	s := serve(t, cfg, prometheus.NewRegistry())
	s.Ready("redis", ok)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) }) // before the server waits for its probes
	var running, most atomic.Int64
	s.Ready("postgres", func(context.Context) error { // deaf to its context
		most.Store(max(most.Load(), running.Add(1)))
		defer running.Add(-1)
		<-release
		return nil
	})
	var clients sync.WaitGroup
	for range 10 {
		clients.Go(func() {
			status, body := request(t, http.MethodGet, "http://"+s.Addr()+"/readyz")
			if status != http.StatusServiceUnavailable {
				t.Errorf("status %d: %s", status, body)
			}
		})
	}
	clients.Wait()
	_, r := readyz(t, s)
	require.Equal(t, "no answer within 50ms", r.Checks["postgres"])
	require.Equal(t, "ok", r.Checks["redis"])
	require.EqualValues(t, 1, most.Load())
}

func TestProbeContextEndsInTime(t *testing.T) {
	cfg := config("postgres")
	cfg.CheckTimeout = 20 * time.Millisecond
	s := serve(t, cfg, prometheus.NewRegistry())
	s.Ready("postgres", func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) })
	status, _ := readyz(t, s)
	require.Equal(t, http.StatusServiceUnavailable, status)
}

// Promise 1.
func TestNothingCanBeChanged(t *testing.T) {
	s := serve(t, withProfiles(), prometheus.NewRegistry())
	for _, path := range []string{"/", "/healthz", "/readyz", "/metrics", "/debug/pprof/", "/debug/pprof/profile", "/debug/pprof/symbol", "/debug/pprof/trace"} {
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
			status, _ := request(t, method, "http://"+s.Addr()+path)
			require.Equal(t, http.StatusMethodNotAllowed, status, "%s %s", method, path)
		}
	}
	for path, want := range map[string]int{"/": 200, "/healthz": 200, "/metrics": 200, "/nothing": 404, "/debug/pprof/cmdline": 404} {
		status, _ := request(t, http.MethodGet, "http://"+s.Addr()+path)
		require.Equal(t, want, status, path)
	}
}

func TestMetricsAreThoseOfTheRegistry(t *testing.T) {
	reg := prometheus.NewRegistry()
	count := prometheus.NewCounter(prometheus.CounterOpts{Name: "processor_consumer_records_total", Help: "x"})
	reg.MustRegister(count)
	count.Add(3)
	s := serve(t, config(), reg)
	status, body := request(t, http.MethodGet, "http://"+s.Addr()+"/metrics")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "\nprocessor_consumer_records_total 3\n")
	require.NotContains(t, body, "go_goroutines", "only what was registered")
}

// Promise 4. A proxy on this machine, with or without the headers of one, makes a
// stranger look like loopback.
func TestProfilesAreServedOnlyWhenTheConfigurationSaysSo(t *testing.T) {
	s := serve(t, config(), prometheus.NewRegistry())
	for _, path := range []string{"", "goroutine?debug=2", "profile?seconds=1", "symbol", "trace?seconds=1"} {
		status, body := request(t, http.MethodGet, "http://"+s.Addr()+"/debug/pprof/"+path)
		require.Equal(t, http.StatusForbidden, status, path)
		require.Contains(t, body, "PPROF=true")
	}
	s = serve(t, withProfiles(), prometheus.NewRegistry())
	status, _ := request(t, http.MethodGet, "http://"+s.Addr()+"/debug/pprof/", "X-Forwarded-For", "203.0.113.7")
	require.Equal(t, http.StatusOK, status)
}

func withProfiles() httpserver.Config {
	cfg := config()
	cfg.Pprof = true
	return cfg
}

// Promise 5.
func TestIdleClientsAreBoundedAndKeepNoProbeOut(t *testing.T) {
	s := serve(t, config(), prometheus.NewRegistry())
	var conns []net.Conn
	for i := range 400 {
		conn, err := net.Dial("tcp", s.Addr())
		require.NoError(t, err)
		defer conn.Close()
		if i%2 == 0 { // half of them have had a request answered, half never ask
			_, err = conn.Write([]byte("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"))
			require.NoError(t, err)
			_, err = conn.Read(make([]byte, 1024))
			require.NoError(t, err)
		}
		conns = append(conns, conn)
		if i%20 == 0 {
			status, _ := request(t, http.MethodGet, "http://"+s.Addr()+"/readyz")
			require.Equal(t, http.StatusOK, status, "a probe between %d idle clients", i)
		}
	}
	// Where a machine is slow the server is behind with accepting them.
	testenv.Wait(t, time.Minute, func() error {
		open := 0
		for _, conn := range conns {
			if err := conn.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
				return err
			}
			if _, err := conn.Read(make([]byte, 1024)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				open++
			}
		}
		if open > 64 {
			return fmt.Errorf("%d connections are open", open)
		}
		return nil
	})
}

// Promise 5.
func TestClientsThatHoldARequestKeepNoProbeOut(t *testing.T) {
	const post = "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 10\r\n\r\n"
	for name, sent := range map[string]string{
		"half a header":      "GET /healthz HTTP/1.1\r\nHost: x\r\nX-",
		"no body, refused":   fmt.Sprintf(post, "/healthz"),
		"no body, not read":  fmt.Sprintf(post, "/held/ignored"),
		"no body, read":      fmt.Sprintf(post, "/held/form"),
		"no body, of a GET":  "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
		"no body, by pieces": "POST /held/form HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n\r\n",
		"does not read":      "GET /held/large HTTP/1.1\r\nHost: x\r\n\r\n",
		"watches":            "GET /held/events HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var under atomic.Int64 // way
			s := serveHeld(t, &under)
			hold := func() {
				conn, err := net.Dial("tcp", s.Addr())
				require.NoError(t, err)
				t.Cleanup(func() { _ = conn.Close() })
				require.NoError(t, conn.SetWriteDeadline(time.Now().Add(100*time.Millisecond)))
				_, _ = conn.Write([]byte(sent)) // in part, where the server waits for us to read
			}
			for range 80 {
				hold()
			}
			if strings.Contains(sent, "/held/") && !strings.Contains(sent, "ignored") {
				testenv.Wait(t, 10*time.Second, func() error {
					if n := under.Load(); n < 60 {
						return fmt.Errorf("%d requests are under way", n)
					}
					return nil
				})
			}
			client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
			for range 10 {
				for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
					res, err := client.Get("http://" + s.Addr() + path)
					require.NoError(t, err)
					_, err = io.Copy(io.Discard, res.Body)
					require.NoError(t, err)
					_ = res.Body.Close()
					require.Equal(t, http.StatusOK, res.StatusCode)
				}
				hold()
			}
		})
	}
}

// serveHeld runs a server with handlers that clients can hold, and counts their calls
// under way.
func serveHeld(t *testing.T, under *atomic.Int64) *httpserver.Server {
	t.Helper()
	s, err := httpserver.New(config(), prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	s.Mount("/held/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		under.Add(1)
		defer under.Add(-1)
		switch strings.TrimPrefix(r.URL.Path, "/held/") {
		case "form":
			_ = r.ParseForm()
		case "large":
			for part := make([]byte, 1<<20); ; {
				if _, err := w.Write(part); err != nil {
					return
				}
			}
		case "events":
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	}))
	run(t, s)
	return s
}

// Nobody waits for a body that is not read: neither the client, nor the server for long.
func TestARequestIsAnsweredWithoutTheBodyThatNobodyReads(t *testing.T) {
	s := serveHeld(t, new(atomic.Int64))
	for _, path := range []string{"/healthz", "/held/ignored"} {
		conn, err := net.Dial("tcp", s.Addr())
		require.NoError(t, err)
		defer conn.Close()
		_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n", path)
		require.NoError(t, err)
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(6*time.Second)))
		began := time.Now()
		answer, err := io.ReadAll(conn)
		require.NoError(t, err, "the connection is closed")
		require.Regexp(t, `^HTTP/1.1 [24]0[05] (.|\n)*Connection: close`, string(answer))
		require.Less(t, time.Since(began), 5*time.Second)
	}
}

func TestTakenPortIsAClearError(t *testing.T) {
	first := serve(t, config(), prometheus.NewRegistry())
	_, port, err := net.SplitHostPort(first.Addr())
	require.NoError(t, err)
	cfg := config()
	cfg.Port, err = strconv.Atoi(port)
	require.NoError(t, err)
	second, err := httpserver.New(cfg, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.Empty(t, second.Addr())
	err = second.Run(t.Context())
	require.ErrorContains(t, err, "listen on 127.0.0.1:"+port)
	require.ErrorContains(t, err, "set METRICS_PORT to a free one")
}

func TestIncompleteConfigIsRefused(t *testing.T) {
	_, err := httpserver.New(httpserver.Config{Port: 70000}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "port 70000")
	require.ErrorContains(t, err, "check timeout")
}

func TestStopCutsARequestThatTakesTooLong(t *testing.T) {
	s, err := httpserver.New(withProfiles(), prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, s.Listen(t.Context()))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	conn, err := net.Dial("tcp", s.Addr())
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("GET /debug/pprof/profile?seconds=60 HTTP/1.1\r\nHost: x\r\n\r\nGET"))
	require.NoError(t, err)
	testenv.Wait(t, 30*time.Second, func() error {
		_, stacks := request(t, http.MethodGet, "http://"+s.Addr()+"/debug/pprof/goroutine?debug=2")
		if !strings.Contains(stacks, "net/http/pprof.Profile(") {
			return errors.New("the profile is not under way")
		}
		return nil
	})
	cancel()
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(40 * time.Second):
		require.FailNow(t, "Run did not return")
	}
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err = io.Copy(io.Discard, conn)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the connection was closed")
}
