package main

import (
	"runtime/debug"

	"github.com/spf13/cobra"
)

// build is the build information of the binary.
type build struct {
	Version  string `json:"version"`
	Revision string `json:"revision"` // commit, empty if unknown
	Time     string `json:"time"`     // of the commit
	Modified bool   `json:"modified"` // the sources differed from the commit
	Go       string `json:"go"`
}

// readBuild reads what the Go tool stamped into the binary.
func readBuild() build {
	b := build{Version: "devel"}
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

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print version and commit of this binary",
		Example: `  processor version
  processor version --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, b := outputOf(cmd), readBuild()
			return out.Result(b, func() error {
				s := "processor " + b.Version
				if b.Revision != "" {
					s += " commit " + b.Revision
				}
				if b.Modified {
					s += " (modified)"
				}
				return out.Line("%s %s", s, b.Go)
			})
		},
	}
}
