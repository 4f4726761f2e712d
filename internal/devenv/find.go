package devenv

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// MissingError says that a program is not installed and how to get it.
type MissingError struct {
	Program string // as looked for, e.g. "redis-server"
	Package string // Debian's name of the package that has it
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s is not installed: run `make setup`, or install the package %s (apt-get install %s)",
		e.Program, e.Package, e.Package)
}

// brewPrefixes returns where Homebrew keeps things on Apple and Intel machines and
// on Linux.
func brewPrefixes() []string {
	return []string{"/opt/homebrew", "/usr/local", "/home/linuxbrew/.linuxbrew"}
}

// postgresDirs lists folders that may hold a whole set of Postgres programs,
// best first: the one on PATH, then Debian's, then Homebrew's, each newest
// first.
func postgresDirs() []string {
	var dirs []string
	if path, err := exec.LookPath("initdb"); err == nil {
		dirs = append(dirs, filepath.Dir(path))
	}
	dirs = append(dirs, newestFirst("/usr/lib/postgresql/*/bin")...)
	for _, prefix := range brewPrefixes() {
		dirs = append(dirs, newestFirst(prefix+"/opt/postgresql@*/bin")...)
		dirs = append(dirs, prefix+"/opt/postgresql/bin", prefix+"/bin")
	}
	return dirs
}

// findPostgresBin returns the folder of the Postgres programs.
func findPostgresBin() (string, error) {
	for _, dir := range postgresDirs() {
		if executable(filepath.Join(dir, "initdb")) && executable(filepath.Join(dir, "postgres")) {
			return dir, nil
		}
	}
	return "", &MissingError{Program: "postgres (with initdb)", Package: "postgresql"}
}

// findRedisServer returns the path of redis-server.
func findRedisServer() (string, error) {
	if path, err := exec.LookPath("redis-server"); err == nil {
		return path, nil
	}
	dirs := []string{"/usr/bin", "/usr/local/bin"}
	for _, prefix := range brewPrefixes() {
		dirs = append(dirs, prefix+"/bin", prefix+"/opt/redis/bin")
	}
	for _, dir := range dirs {
		if path := filepath.Join(dir, "redis-server"); executable(path) {
			return path, nil
		}
	}
	return "", &MissingError{Program: "redis-server", Package: "redis-server"}
}

// findTimescale finds the extension beside the Postgres that would be started.
func findTimescale() error {
	bin, err := findPostgresBin()
	if err != nil {
		return err
	}
	out, err := exec.Command(filepath.Join(bin, "pg_config"), "--sharedir").Output()
	if err == nil {
		_, err = os.Stat(filepath.Join(strings.TrimSpace(string(out)), "extension", "timescaledb.control"))
	}
	if err != nil {
		return &MissingError{Program: "TimescaleDB", Package: "timescaledb-2-postgresql"}
	}
	return nil
}

// newestFirst expands the pattern and sorts by the version number in the path.
func newestFirst(pattern string) []string {
	paths, err := filepath.Glob(pattern)
	if err != nil { // only a malformed pattern, and ours are constants
		return nil
	}
	slices.SortStableFunc(paths, func(a, b string) int {
		return cmp.Compare(pathVersion(b), pathVersion(a))
	})
	return paths
}

// pathVersion reads 17 from both /usr/lib/postgresql/17/bin and
// /opt/homebrew/opt/postgresql@17/bin; 0 when there is none.
func pathVersion(path string) float64 {
	name := filepath.Base(filepath.Dir(path))
	name = name[strings.LastIndexByte(name, '@')+1:]
	version, err := strconv.ParseFloat(name, 64)
	if err != nil {
		return 0
	}
	return version
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.IsDir() && info.Mode()&0o111 != 0
}
