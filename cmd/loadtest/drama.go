package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/loadtest/demo"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/testbed"
	"github.com/trmtracking/processor/modules"
)

// killAfter is when the demo kills one of its two instances.
const killAfter = 15 * time.Second

// demoJunk is the share of entries that are no valid record, of a simulated fleet.
const demoJunk = 0.0005

// demoInstance is one of the two processes of a demo.
type demoInstance struct {
	name   string
	port   int
	cmd    *exec.Cmd
	exited chan struct{}
	err    error
}

func (d *demoInstance) url(path string) string {
	return fmt.Sprintf("http://127.0.0.1:%d%s", d.port, path)
}

// freePorts returns ports that are free now.
func freePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer l.Close() //nolint:errcheck // held only so that the ports differ
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// runDrama is the demo for people: two instances as processes of their own, one of
// which is killed, with a console to watch it.
func runDrama(cmd *cobra.Command, in demo.Input, f demoFlags) (err error) {
	ctx, out, notes := cmd.Context(), cli.New(cmd.OutOrStdout(), f.json), cmd.ErrOrStderr()
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	one, two := &demoInstance{name: "one", port: ports[0]}, &demoInstance{name: "two", port: ports[1]}
	token := rand.Text()
	cli.Say(notes, "console   %s   (in a few seconds; sign in with %s to act)", one.url("/console/"), token)
	dir, err := os.MkdirTemp("", "processor-demo-")
	if err != nil {
		return fmt.Errorf("make a folder for the demo: %w", err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // what stays is in the folder for temporary files
	program, err := findProcessor(cmd, "", dir)
	if err != nil {
		return err
	}
	in.Junk = demoJunk
	load, err := in.Open()
	if err != nil {
		return err
	}
	feeding := fmt.Sprintf("feeding %s: %s of %s", load.Name, cli.Count(load.Entries, "entry"), cli.Count(load.Devices, "device"))
	cli.Say(notes, "%s", strings.Join(cli.Wrap(feeding, cli.Columns-2), "\n  "))
	servers, err := demo.StartServers(ctx, os.Getenv(demo.RedisVariable), os.Getenv(demo.PostgresVariable))
	if err != nil {
		return interrupted(ctx, err)
	}
	defer func() { err = errors.Join(err, servers.Close()) }()

	environ := slices.DeleteFunc(demoEnviron(os.Environ(), servers), func(v string) bool {
		return strings.HasPrefix(v, "METRICS_PORT=") || strings.HasPrefix(v, "INSTANCE_ID=")
	})
	environ = append(environ, "DLQ_RETRY_DELAYS=1s", "CONSOLE=write", "CONSOLE_TOKEN="+token)
	cfg, err := config.Load(environ)
	if err != nil {
		return err
	}
	log := modules.NewLogger(cfg.Log, "demo", notes)
	start := func(d *demoInstance) error { return d.start(program, dir, environ) }
	defer one.stop()
	defer func() { two.stop() }()
	for _, d := range []*demoInstance{one, two} {
		if err := start(d); err != nil {
			return err
		}
		if err := d.ready(ctx); err != nil {
			return interrupted(ctx, err)
		}
	}
	fleetView, err := operator.Open(ctx, cfg, "demo", operator.Name())
	if err != nil {
		return err
	}
	defer fleetView.Close()
	if len(in.Tracks) == 0 {
		if _, err := fleetView.ImportFences(ctx, strings.NewReader(fleet.Rally(in.Seed).Fences()), "demo", geofence.Defaults{}, false, -1); err != nil {
			return interrupted(ctx, err)
		}
	}
	cli.Say(notes, "two instances are up, fences are imported; in %v one of them is killed", killAfter)

	d := &drama{fleet: fleetView, notes: notes, victim: two, start: start}
	acting, stopActing := context.WithCancel(ctx)
	var scene sync.WaitGroup
	scene.Go(func() { d.act(acting) })
	result, err := demo.Run(ctx, demo.Config{
		RedisURL: servers.RedisURL, PostgresURL: servers.PostgresURL, Stream: cfg.Redis.Stream, Group: cfg.Redis.Group,
		Load: load, Metrics: &scraper{instances: []*demoInstance{two, one}}, StallLimit: demoStallLimit,
		Show: shower(notes, load.Entries), Every: showEvery(notes),
	}, log)
	if err == nil {
		d.await(ctx)
	}
	stopActing()
	scene.Wait()
	if err != nil {
		return interrupted(ctx, err)
	}
	if err := account(out, notes, result); err != nil {
		return err
	}
	fixed := d.fix(ctx, result)
	d.tell(result, fixed)
	sayDrama(notes, servers, one)
	select {
	case <-ctx.Done():
	case <-one.exited:
		return fmt.Errorf("instance one ended unexpectedly: %w", one.err)
	}
	if !result.Good() {
		return errMissed
	}
	return nil
}

// start starts the process.
func (d *demoInstance) start(program, dir string, environ []string) error {
	logFile, err := os.OpenFile(filepath.Join(dir, d.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make the log of an instance: %w", err)
	}
	d.cmd = exec.Command(program, "run")
	d.cmd.Env = append(slices.Clone(environ), "INSTANCE_ID="+d.name, "METRICS_PORT="+strconv.Itoa(d.port))
	d.cmd.Stdout, d.cmd.Stderr = logFile, logFile
	d.cmd.SysProcAttr = testbed.Detached()
	if err := d.cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("start instance %s: %w", d.name, err), logFile.Close())
	}
	d.exited = make(chan struct{})
	go func(exited chan struct{}) {
		defer close(exited)
		d.err = errors.Join(d.cmd.Wait(), logFile.Close())
	}(d.exited)
	return nil
}

// ready waits until it is ready.
func (d *demoInstance) ready(ctx context.Context) error {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url("/readyz"), nil)
		if err != nil {
			return err
		}
		if res, err := http.DefaultClient.Do(req); err == nil {
			_ = res.Body.Close() // only the status matters
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-d.exited:
			return fmt.Errorf("instance %s ended: %w", d.name, d.err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// stop ends it, with some time to release its shards.
func (d *demoInstance) stop() {
	if d.cmd == nil || d.cmd.Process == nil {
		return
	}
	_ = d.cmd.Process.Signal(os.Interrupt) // it may be gone
	select {
	case <-d.exited:
	case <-time.After(5 * time.Second):
		_ = d.cmd.Process.Kill() // as above
		<-d.exited
	}
}

// drama is what happens while the fleet is fed.
type drama struct {
	fleet  *operator.Fleet
	notes  io.Writer
	victim *demoInstance
	start  func(d *demoInstance) error

	mu    sync.Mutex
	moved int
	took  time.Duration
	over  chan struct{}
	once  sync.Once
}

func (d *drama) done() chan struct{} {
	d.once.Do(func() { d.over = make(chan struct{}) })
	return d.over
}

// await waits until the killed instance is back.
func (d *drama) await(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-d.done():
	case <-time.After(time.Minute):
	}
}

// owned returns the number of shards of the victim, negative while that is unknown.
func (d *drama) owned(ctx context.Context) int {
	s, err := d.fleet.Shards(ctx)
	if err != nil || s.Unanswered != nil {
		return -1
	}
	n := 0
	for _, x := range s.Shards {
		if x.Owner == nil || strings.HasPrefix(*x.Owner, d.victim.name+".") {
			n++
		}
	}
	return n
}

// act kills an instance, watches its shards move, and starts it again.
func (d *drama) act(ctx context.Context) {
	defer close(d.done())
	pause := func(t time.Duration) bool {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(t):
			return true
		}
	}
	if !pause(killAfter) {
		return
	}
	had := d.owned(ctx)
	_ = d.victim.cmd.Process.Kill() // it was running a moment ago
	<-d.victim.exited
	began := time.Now()
	cli.Say(d.notes, "\nkilled instance %s (process %d), which owned %s", d.victim.name, d.victim.cmd.Process.Pid, cli.Count(had, "shard"))
	for d.owned(ctx) != 0 {
		if !pause(100 * time.Millisecond) {
			return
		}
	}
	d.mu.Lock()
	d.moved, d.took = had, time.Since(began)
	d.mu.Unlock()
	cli.Say(d.notes, "\n%s moved to the other instance in %.1f s", cli.Count(had, "shard"), d.took.Seconds())
	if !pause(5 * time.Second) {
		return
	}
	if err := d.start(d.victim); err != nil {
		cli.Say(d.notes, "starting it again failed: %v", err)
		return
	}
	if d.victim.ready(ctx) == nil {
		cli.Say(d.notes, "\ninstance %s is back and gets its share again", d.victim.name)
	}
}

// fix edits a dead letter whose latitude is out of range and replays it. It returns
// what was done, "" for nothing.
func (d *drama) fix(ctx context.Context, _ *demo.Result) string {
	list, err := d.fleet.DeadLetters(ctx, operator.Filter{Class: "invalid"}, "", 200)
	if err != nil {
		return ""
	}
	for _, l := range list.Letters {
		field, value, ok := repairs(l.Field)
		if !ok {
			continue
		}
		edited, err := d.fleet.EditDeadLetter(ctx, l.ID, func(fields []string) ([]string, error) { return operator.SetField(fields, field, value) })
		if err != nil || edited.NowFails != nil {
			continue
		}
		r, err := d.fleet.RetryDeadLetters(ctx, operator.Filter{IDs: []string{l.ID}}, operator.RetryOptions{PerSecond: 100, PauseAt: 10_000})
		if err != nil || r.Done == 0 {
			continue
		}
		waiting, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		fate, err := d.fleet.Fates(waiting, []string{r.Letters[0].As})
		if err == nil && fate.Accepted == 1 {
			return fmt.Sprintf("a dead letter was fixed (%s = %s) and replayed: it was accepted", field, value)
		}
	}
	return ""
}

// repairs returns how a field at fault is edited.
func repairs(field string) (name, value string, ok bool) {
	switch field {
	case "payload.latitude", "payload.longitude":
		return field, "45.5", true
	case "payload.timestamp":
		return field, `"2025-09-13T07:59:00Z"`, true
	case "payload.satellites", "payload.angle", "payload.speed", "payload.altitude", "payload.priority":
		return field, "0", true
	}
	return "", "", false
}

// tell says the account in one line.
func (d *drama) tell(r *demo.Result, fixed string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	line := fmt.Sprintf("%d lost, %d wrong or double, ", r.Account.Lost, r.Account.Mismatches)
	if d.moved > 0 {
		line += fmt.Sprintf("%s moved in %.1f s after a kill", cli.Count(d.moved, "shard"), d.took.Seconds())
	} else {
		line += "and no instance was killed"
	}
	cli.Say(d.notes, "%s", line)
	if fixed != "" {
		cli.Say(d.notes, "%s", fixed)
	}
}

func sayDrama(w io.Writer, s *demo.Servers, one *demoInstance) {
	cli.Say(w, `
still running, Ctrl-C ends it. The console: %s
In another terminal, as it is:

  export REDIS_URL='%s' POSTGRES_URL='%s'
  bin/processor top
  bin/processor lag
  bin/processor shards
  bin/processor dlq stats
  bin/processor device list --limit 5
  curl -s %s | grep processor_pipeline_records_total`, one.url("/console/"), s.RedisURL, s.PostgresURL, one.url("/metrics"))
}

// scraper gathers the metrics of both instances; what a dead one said last stays, also
// when it has been started again and counts from 0.
type scraper struct {
	instances []*demoInstance

	mu    sync.Mutex
	last  map[string]map[string]*dto.MetricFamily
	ended []map[string]*dto.MetricFamily
}

// Gather implements prometheus.Gatherer.
func (s *scraper) Gather() ([]*dto.MetricFamily, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last = make(map[string]map[string]*dto.MetricFamily)
	}
	for _, d := range s.instances {
		if families, err := scrape(d); err == nil {
			if last := s.last[d.name]; last != nil && startOf(last) != startOf(families) {
				s.ended = append(s.ended, last)
			}
			s.last[d.name] = families
		}
	}
	var all []*dto.MetricFamily
	for _, families := range s.ended {
		all = slices.AppendSeq(all, maps.Values(families))
	}
	for _, d := range s.instances { // of a histogram the last one counts
		all = slices.AppendSeq(all, maps.Values(s.last[d.name]))
	}
	return all, nil
}

// startOf returns when a process was started, 0 if that is unknown.
func startOf(families map[string]*dto.MetricFamily) float64 {
	for _, m := range families["process_start_time_seconds"].GetMetric() {
		return m.GetGauge().GetValue()
	}
	return 0
}

var _ prometheus.Gatherer = (*scraper)(nil)

func scrape(d *demoInstance) (map[string]*dto.MetricFamily, error) {
	client := http.Client{Timeout: time.Second}
	res, err := client.Get(d.url("/metrics"))
	if err != nil {
		return nil, err
	}
	defer res.Body.Close() //nolint:errcheck // read to its end
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(res.Body)
}
