package httpserver

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"net/http/pprof"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const index = `The Processor: positions from a Redis Stream into Postgres.

/healthz       the process answers
/readyz        it can do its work; 503 and what is missing otherwise
/metrics       metrics for Prometheus
/console/      the fleet at work, in a browser; unless CONSOLE=off
/debug/pprof/  profiles, with PPROF=true
`

// Readiness is the response of /readyz.
type Readiness struct {
	Ready    bool              `json:"ready"`
	NotReady []string          `json:"not_ready"` // names, sorted
	Checks   map[string]string `json:"checks"`    // name to "ok" or the error
}

// routes returns the handler of all paths. Probes of checks end with ctx.
func (s *Server) routes(ctx context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, index) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		status := http.StatusOK
		r := s.readiness(ctx)
		if !r.Ready {
			status = http.StatusServiceUnavailable
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(r) // the client may be gone
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.gatherer, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(s.log.Handler(), slog.LevelError),
		ErrorHandling:       promhttp.ContinueOnError, // one broken collector does not hide the others
		Registry:            s.gatherer,
		MaxRequestsInFlight: 8,
		Timeout:             10 * time.Second,
		EnableOpenMetrics:   true,
	}))
	for path, h := range s.mounted {
		mux.Handle(path, h)
	}
	// Without cmdline: it is not a profile.
	mux.Handle("GET /debug/pprof/", s.guard(pprof.Index))
	mux.Handle("GET /debug/pprof/profile", s.guard(pprof.Profile))
	mux.Handle("GET /debug/pprof/symbol", s.guard(pprof.Symbol))
	mux.Handle("GET /debug/pprof/trace", s.guard(pprof.Trace))
	return mux
}

// answering ends the connection of each request that has a body, since net/http would
// wait for a body that no handler reads, to use the connection again: before it answers,
// and after that.
func answering(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			w.Header().Set("Connection", "close")
			defer func() {
				_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)) // a connection that is gone waits for nothing
			}()
		}
		next.ServeHTTP(w, r)
	})
}

// readiness runs all checks concurrently.
func (s *Server) readiness(ctx context.Context) Readiness {
	s.mu.Lock()
	checks := maps.Clone(s.checks)
	s.mu.Unlock()

	results := make(map[string]error, len(checks)+1)
	var mu sync.Mutex // guards results
	var asked sync.WaitGroup
	for name, c := range checks {
		asked.Go(func() {
			err := c.status(ctx, s.launch)
			mu.Lock()
			defer mu.Unlock()
			results[name] = err
		})
	}
	asked.Wait()
	if s.draining.Load() {
		results["shutdown"] = errDraining
	}

	r := Readiness{Ready: true, NotReady: []string{}, Checks: make(map[string]string, len(results))}
	for _, name := range slices.Sorted(maps.Keys(results)) {
		if err := results[name]; err != nil {
			r.Ready = false
			r.NotReady = append(r.NotReady, name)
			r.Checks[name] = err.Error()
		} else {
			r.Checks[name] = "ok"
		}
	}
	return r
}

// guard refuses profiles unless the configuration opens them. No address is proof
// of anything: behind a proxy on this machine every client is on loopback.
func (s *Server) guard(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.cfg.Pprof {
			text(w, http.StatusForbidden, "profiles are closed; PPROF=true opens them to every client\n")
			return
		}
		next(w, r)
	})
}

func text(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // the client may be gone
}
