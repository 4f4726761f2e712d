package crash

import (
	"bytes"
	"io"
	"io/fs"
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

// final is the name of a dump.
func final(at time.Time, name string) string {
	return crashed + at.UTC().Format(fileTime) + "-" + name + suffix
}

// collect names the dumps of processes that are gone, and keeps the newest.
func (r *Recorder) collect() {
	files, _ := fs.Glob(r.folder.FS(), running+"*") // the pattern is valid
	for _, name := range files {
		r.keepDump(name)
	}
	dumps, _ := fs.Glob(r.folder.FS(), crashed+"*"+suffix)
	slices.Sort(dumps)
	for i, name := range dumps {
		if i < len(dumps)-kept {
			_ = r.folder.Remove(name) // the next start tries again
			continue
		}
		if f, err := openFile(r.folder, name, os.O_RDWR); err == nil {
			if info, err := f.Stat(); err == nil && info.Size() > r.cfg.MaxBytes {
				_ = f.Truncate(r.cfg.MaxBytes) // as above
			}
			_ = f.Close() // nothing is buffered
		}
	}
}

// keepDump names a file left behind by a crashed process, or removes it.
func (r *Recorder) keepDump(file string) {
	f, err := openFile(r.folder, file, os.O_RDWR)
	if err != nil {
		return // another process took it, or it is no file of ours
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
		_ = r.folder.Remove(file) // the next start tries again
		return
	}
	name := strings.TrimSuffix(strings.TrimPrefix(file, running), filepath.Ext(file))
	dump := final(info.ModTime(), name)
	if err := r.folder.Rename(file, dump); err != nil {
		r.log.Error("earlier process crashed; renaming its dump failed", "dump", f.Name(), "err", err)
		return
	}
	reason, _, _ := bytes.Cut(bytes.TrimLeft(crash, "\n"), []byte("\n"))
	r.log.Error("earlier process crashed; dump kept", "dump", filepath.Join(r.cfg.Dir, dump), "reason", string(reason))
}
