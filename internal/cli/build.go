package cli

import (
	"runtime/debug"
	"strings"
)

// Set by scripts/build-static.sh, which leaves the stamps of the Go tool out: the
// same sources make the same bytes in a clone, in a tarball and in a container.
var version, revision, revisionTime string

// Build is the build information of a program.
type Build struct {
	Version  string `json:"version"`
	Revision string `json:"revision"` // commit, empty where it was built without
	Time     string `json:"time"`     // of the commit
	Modified bool   `json:"modified"` // the sources differed from the commit
	Go       string `json:"go"`
}

// ReadBuild reads what was stamped into the program: by its build script, by the Go
// tool, or by git archive.
func ReadBuild() Build {
	b := Build{Version: "devel"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Go = info.GoVersion
	if version != "" {
		b.Version, b.Modified = strings.CutSuffix(version, "-dirty")
		b.Revision, b.Time = revision, revisionTime
		return b
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		b.Version = v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	if b.Revision == "" {
		b.archived(stamp)
	}
	return b
}

// archived takes over what git archive wrote; a commit without a version tag before
// it has none.
func (b *Build) archived(stamp string) {
	lines := strings.Split(stamp, "\n")
	if len(lines) < 3 || strings.HasPrefix(lines[1], "$") {
		return // a clone, or a copy of one
	}
	if lines[0] != "" {
		b.Version = lines[0]
	}
	b.Revision, b.Time = lines[1], lines[2]
}
