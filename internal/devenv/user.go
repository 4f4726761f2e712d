package devenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is the user the servers run as; nil means the current one.
type account struct {
	name string
	cred *syscall.Credential
}

// serverUser picks an unprivileged user when this process is root.
func serverUser() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "_postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errUID := strconv.ParseUint(u.Uid, 10, 32)
		gid, errGID := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(errUID, errGID); err != nil || uid == 0 {
			continue
		}
		return &account{name: name, cred: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
	}
	return nil, errors.New("no user postgres or nobody to run the servers as (Postgres refuses root): " +
		"add one or run as another user")
}

// own hands a folder to the account.
func (a *account) own(dir string) error {
	if a == nil {
		return nil
	}
	if err := os.Chown(dir, int(a.cred.Uid), int(a.cred.Gid)); err != nil {
		return fmt.Errorf("give server folder to %s: %w", a.name, err)
	}
	return nil
}

// attributes detaches a process from our terminal, so that Ctrl-C reaches us
// alone and we can still drain into living servers, and drops root.
func (a *account) attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true}
	if a != nil {
		attr.Credential = a.cred
	}
	return attr
}

// makeHome makes the folder of an environment, which the account can enter.
func makeHome(parent string, a *account) (string, error) {
	dir, err := os.MkdirTemp(parent, "processor-devenv-")
	if err != nil {
		return "", fmt.Errorf("make server folder: %w", err)
	}
	// Servers report real paths; on macOS the temporary folder is behind a link.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", fmt.Errorf("resolve server folder: %w", err)
	}
	if err := a.own(dir); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	if a != nil {
		enter := exec.Command("/bin/sh", "-c", `cd "$1"`, "sh", dir)
		enter.Dir, enter.SysProcAttr = "/", a.attributes()
		if err := enter.Run(); err != nil {
			return "", errors.Join(
				fmt.Errorf("user %s cannot enter %s: choose a folder that everyone may pass (TMPDIR)", a.name, parent),
				os.RemoveAll(dir))
		}
	}
	return dir, nil
}

// parent is the folder of an environment whose caller names none.
func (o Options) parent() string {
	const memory, disk = "/dev/shm", "/var/tmp"
	if os.Getenv("TMPDIR") != "" {
		return os.TempDir()
	}
	if o.InMemory && hasRoom(memory) {
		return memory
	}
	if info, err := os.Stat(disk); err == nil && info.IsDir() {
		return disk
	}
	return os.TempDir()
}

// hasRoom reports whether a file system has more free space than the servers of a
// run of all tests take, several times over: in a container it often has 64 MB.
func hasRoom(folder string) bool {
	const room = 8 << 30
	var fs syscall.Statfs_t
	return syscall.Statfs(folder, &fs) == nil && fs.Bavail*uint64(fs.Bsize) >= room
}
