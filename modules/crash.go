package modules

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/crash"
)

// exposed is what a dump reads of a service, and where panics are reported.
type exposed struct {
	parts      parts
	supervisor *supervisor
	member     Member
}

func (s *Service) exportForDump(ps parts, sv *supervisor, m Member) {
	s.exposed = exposed{parts: ps, supervisor: sv, member: m}
}

// DumpConfig returns what a dump of this instance contains and where it goes.
func DumpConfig(cfg config.Config, b Build) crash.Config {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	var header bytes.Buffer
	fmt.Fprintf(&header, "processor dump\nversion %s\nrevision %s\ngo %s\ninstance %s\nhost %s\npid %d\nstarted %s\n",
		b.Version, b.Revision, runtime.Version(), cfg.Instance.ID, host, os.Getpid(), time.Now().UTC().Format(time.RFC3339Nano))
	header.WriteString("\n--- settings\n")
	for _, s := range cfg.Settings() {
		fmt.Fprintf(&header, "%s=%s\n", s.Name, s.Value)
	}
	return crash.Config{
		Dir: cfg.Crash.Dir, MaxBytes: cfg.Crash.MaxBytes, Header: header.Bytes(),
		Name: fmt.Sprintf("%s-%d", cfg.Instance.ID, os.Getpid()),
	}
}

// Expose makes the dump include what this service has in flight. Call it before
// Start.
func (s *Service) Expose(r *crash.Recorder) {
	r.Watch(s.writeDump)
	for _, p := range s.exposed.parts {
		p.Pipeline.OnPanic(r.Panicked)
	}
	s.exposed.supervisor.panicked = r.Panicked
}

// writeDump writes one JSON text per line: the member, then each worker. A
// truncated line leaves the others readable.
func (s *Service) writeDump(w io.Writer) {
	lines := json.NewEncoder(w)
	_ = lines.Encode(map[string]Member{"member": s.exposed.member}) // the writer never fails
	for _, p := range s.exposed.parts {
		for _, dump := range p.Pipeline.Dump(s.cfg.Crash.Positions) {
			_ = lines.Encode(dump) // as above
		}
	}
}
