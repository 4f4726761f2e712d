package crash

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// private is the mode of the folder: what lies in it was put there by this user.
const private = 0o700

// OpenFolder opens the folder for dumps and creates it if it is missing. A folder
// that another user owns or may enter is refused, as is a symbolic link: another user who can
// put a link or a pipe there decides what a dump overwrites. The error names the remedy.
func OpenFolder(dir string) (*os.Root, error) {
	if err := os.MkdirAll(dir, private); err != nil {
		return nil, fmt.Errorf("make folder for dumps, check PANIC_DUMP_DIR: %w", err)
	}
	named, err := os.Lstat(dir)
	if err != nil {
		return nil, fmt.Errorf("folder for dumps, check PANIC_DUMP_DIR: %w", err)
	}
	if err := refusal(dir, named); err != nil {
		return nil, err
	}
	folder, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open folder for dumps, check PANIC_DUMP_DIR: %w", err)
	}
	opened, err := folder.Stat(".")
	if err == nil && !os.SameFile(named, opened) {
		err = fmt.Errorf("folder for dumps %s was exchanged while it was opened", dir)
	}
	if err != nil {
		return nil, errors.Join(err, folder.Close())
	}
	return folder, nil
}

func refusal(dir string, named fs.FileInfo) error {
	switch {
	case named.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("folder for dumps %s is a symbolic link; set PANIC_DUMP_DIR to the folder itself", dir)
	case !named.IsDir():
		return fmt.Errorf("folder for dumps %s is no folder; set PANIC_DUMP_DIR to one", dir)
	case !ours(named):
		return fmt.Errorf("folder for dumps %s belongs to another user; set PANIC_DUMP_DIR to one that does not exist yet", dir)
	case named.Mode().Perm()&^private != 0:
		return fmt.Errorf("folder for dumps %s is open to other users (mode %04o); chmod 700 it, or set PANIC_DUMP_DIR to one that does not exist yet",
			dir, named.Mode().Perm())
	}
	return nil
}

// openFile opens a file of the folder, if it is a regular one of this user that has no
// second name. It never blocks, as the opening of a pipe could.
func openFile(folder *os.Root, name string, flags int) (*os.File, error) {
	f, err := folder.OpenFile(name, flags|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open dump: %w", err)
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || !ours(info) || links(info) != 1) {
		err = fmt.Errorf("dump %s is no regular file of this user alone; remove it", f.Name())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func ours(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

func links(info fs.FileInfo) uint64 {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return uint64(stat.Nlink) //nolint:unconvert // the types differ between systems
}
