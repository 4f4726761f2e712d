package httpserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// closeTimeout bounds running requests when the server stops.
	closeTimeout = time.Second
	// bodyTimeout bounds the wait for a body that a request was answered without.
	bodyTimeout = time.Second
)

// Config configures a Server.
type Config struct {
	Host         string        // address to listen on; empty means all interfaces
	Port         int           // 0 selects a free one
	Pprof        bool          // serve profiles
	Checks       []string      // names of the checks without which the service is not ready
	CheckTimeout time.Duration // maximum wait for one check
}

func (c Config) validate() error {
	var errs []error
	if c.Port < 0 || c.Port > 65535 {
		errs = append(errs, fmt.Errorf("port %d: want 0 to 65535", c.Port))
	}
	if c.CheckTimeout <= 0 {
		errs = append(errs, errors.New("check timeout: want a positive duration"))
	}
	return errors.Join(errs...)
}

// Server is the HTTP endpoint.
type Server struct {
	cfg      Config
	gatherer *prometheus.Registry
	log      *slog.Logger

	draining atomic.Bool
	probes   sync.WaitGroup // probes of checks that are under way

	mu       sync.Mutex
	checks   map[string]*check // guarded by mu
	listener net.Listener      // guarded by mu; nil until Listen
	closed   bool              // guarded by mu; no further probe starts
	mounted  map[string]http.Handler
}

// New returns a server that serves the metrics of reg. It does not listen yet.
func New(cfg Config, reg *prometheus.Registry, log *slog.Logger) (*Server, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("configure HTTP server: %w", err)
	}
	s := &Server{
		cfg:      cfg,
		gatherer: reg,
		log:      log.With("component", "httpserver"),
		checks:   map[string]*check{},
	}
	for _, name := range cfg.Checks {
		s.Ready(name, func(context.Context) error { return errUnregistered })
	}
	return s, nil
}

// Ready registers a readiness check and replaces an earlier one of the same name.
// Every client may read the text of its error, which names no user and no address.
// The check is called at most once a second, never concurrently, and its context
// ends after CheckTimeout.
func (s *Server) Ready(name string, run func(ctx context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checks[name] = &check{run: run, timeout: s.cfg.CheckTimeout}
}

// Mount serves everything under a path that ends with a slash by h, whose requests
// end when the server stops. Call it before Run.
func (s *Server) Mount(path string, h http.Handler) {
	if s.mounted == nil {
		s.mounted = make(map[string]http.Handler)
	}
	s.mounted[path] = h
}

// SetDraining makes the service permanently not ready, whatever the checks report.
func (s *Server) SetDraining() { s.draining.Store(true) }

// Listen binds the port. Run does so if it was not called before; calling it
// first makes a port in use an error of the start.
func (s *Server) Listen(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener != nil {
		return nil
	}
	address := net.JoinHostPort(s.cfg.Host, strconv.Itoa(s.cfg.Port))
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("listen on %s: another process has this port; stop it or set METRICS_PORT to a free one: %w", address, err)
	}
	if err != nil {
		return fmt.Errorf("listen on %s: check METRICS_HOST and METRICS_PORT: %w", address, err)
	}
	s.listener = l
	return nil
}

// Addr returns the address in use, or "" before Listen.
func (s *Server) Addr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener == nil {
		return ""
	}
	return s.listener.Addr().String()
}

// Run serves until ctx is cancelled, then gives running requests closeTimeout to
// end. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	if err := s.Listen(ctx); err != nil {
		return err
	}
	// Probes belong to the server, not to a request: their result is for the
	// next request too.
	probing, stopProbing := context.WithCancel(ctx)
	defer s.endProbes(stopProbing)

	server := &http.Server{
		// Streams would otherwise hold up the stop for closeTimeout.
		BaseContext:       func(net.Listener) context.Context { return probing },
		Handler:           answering(s.routes(probing)),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      2 * time.Minute, // a CPU profile takes as long as it is asked to
		IdleTimeout:       30 * time.Second,
		ConnState:         newConnections().changed,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // clients' mistakes
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(s.listener) }()
	s.log.Info("serving metrics and health", "address", s.Addr())

	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", s.Addr(), err)
	case <-ctx.Done():
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := server.Shutdown(closing); err != nil {
		_ = server.Close() // a request that exceeds closeTimeout is cut
	}
	<-served //nolint:errcheck // http.ErrServerClosed, since we closed it
	return nil
}

// launch starts a probe that Run waits for, unless the server is closing.
func (s *Server) launch(probe func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.probes.Go(probe)
	return true
}

func (s *Server) endProbes(cancel context.CancelFunc) {
	cancel()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.probes.Wait()
}
