package cli

import "runtime/debug"

// Build is the build information of a program.
type Build struct {
	Version  string `json:"version"`
	Revision string `json:"revision"` // commit, empty where it was built without
	Time     string `json:"time"`     // of the commit
	Modified bool   `json:"modified"` // the sources differed from the commit
	Go       string `json:"go"`
}

// ReadBuild reads what the Go tool stamped into the program.
func ReadBuild() Build {
	b := Build{Version: "devel"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Go = info.GoVersion
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
	return b
}
