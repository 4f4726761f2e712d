package operator

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/crash"
)

// examineDisk checks whether a dump could be written on this machine.
func (d *Diagnosis) examineDisk(cfg config.Crash) {
	about := "folder " + cfg.Dir
	dir := cfg.Dir
	if _, err := os.Lstat(dir); err == nil {
		folder, err := crash.OpenFolder(dir)
		if err != nil {
			d.add(LevelWarning, about, "no panic dump can be written: "+err.Error(), "set PANIC_DUMP_DIR to a folder of this user alone")
			return
		}
		_ = folder.Close() // only opened
	}
	for {
		if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir) // created when it is needed
	}
	const remedy = "set PANIC_DUMP_DIR to a folder that this user can write"
	const canWrite = 0x2 // W_OK
	if err := syscall.Access(dir, canWrite); err != nil {
		d.add(LevelWarning, about, "no panic dump can be written: "+err.Error(), remedy)
		return
	}
	var fsys syscall.Statfs_t
	if err := syscall.Statfs(dir, &fsys); err != nil {
		d.add(LevelWarning, about, "its free space is unknown: "+err.Error(), remedy)
		return
	}
	free := int64(fsys.Bavail) * int64(fsys.Bsize) //nolint:unconvert // the types differ between systems
	d.check(free < 10*cfg.MaxBytes, LevelWarning, about, "panic dumps can be written, "+bytesText(free)+" free",
		fmt.Sprintf("%s free, less than ten panic dumps", bytesText(free)), "make room, or lower PANIC_DUMP_MAX_BYTES")
}
