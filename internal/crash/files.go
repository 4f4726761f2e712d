package crash

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	running  = "running-" // files of processes that live, or were killed
	crashed  = "panic-"   // dumps
	suffix   = ".txt"
	fileTime = "20060102T150405.000Z" // sorts as text
)

func (r *Recorder) final(at time.Time, name string) string {
	return filepath.Join(r.cfg.Dir, crashed+at.UTC().Format(fileTime)+"-"+name+suffix)
}

// collect names the dumps of processes that are gone, and keeps the newest.
func (r *Recorder) collect() {
	files, _ := filepath.Glob(filepath.Join(r.cfg.Dir, running+"*")) // the pattern is valid
	for _, path := range files {
		r.keepDump(path)
	}
	dumps, _ := filepath.Glob(filepath.Join(r.cfg.Dir, crashed+"*"+suffix))
	slices.Sort(dumps)
	for i, path := range dumps {
		if i < len(dumps)-kept {
			_ = os.Remove(path) // the next start tries again
			continue
		}
		if info, err := os.Stat(path); err == nil && info.Size() > r.cfg.MaxBytes {
			_ = os.Truncate(path, r.cfg.MaxBytes) // as above
		}
	}
}

// keepDump names a file left behind by a crashed process, or removes it.
func (r *Recorder) keepDump(path string) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return // another process took it, or it is not readable
	}
	defer f.Close() //nolint:errcheck // only locked and read
	if lock(f) != nil {
		return // its process lives
	}
	text, err := io.ReadAll(io.LimitReader(f, r.cfg.MaxBytes))
	if err != nil {
		return
	}
	info, err := f.Stat()
	if err != nil {
		return
	}
	_, crash, found := bytes.Cut(text, []byte(marker))
	if !found || len(crash) == 0 {
		_ = os.Remove(path) // the next start tries again
		return
	}
	name := strings.TrimPrefix(filepath.Base(path), running)
	name = strings.TrimSuffix(name, filepath.Ext(name))
	dump := r.final(info.ModTime(), name)
	if err := os.Rename(path, dump); err != nil {
		r.log.Error("earlier process crashed; renaming its dump failed", "dump", path, "err", err)
		return
	}
	reason, _, _ := bytes.Cut(bytes.TrimLeft(crash, "\n"), []byte("\n"))
	r.log.Error("earlier process crashed; dump kept", "dump", dump, "reason", string(reason))
}
