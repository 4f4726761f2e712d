package cli

import (
	"encoding/base64"
	"encoding/hex"
	"runtime/debug"
	"strings"
)

// BOM is a bill of materials in the form of CycloneDX 1.5: what a program was
// linked from, as the Go tool recorded it. It has no licences; make sbom adds them.
type BOM struct {
	Format     string      `json:"bomFormat"`
	Spec       string      `json:"specVersion"`
	Version    int         `json:"version"`
	Metadata   BOMMetadata `json:"metadata"`
	Components []Component `json:"components"`
}

// BOMMetadata says what the bill is about.
type BOMMetadata struct {
	Timestamp string    `json:"timestamp,omitempty"` // of the commit: the same program has the same bill
	Component Component `json:"component"`
}

// Component is a program, or a module in it.
type Component struct {
	Type    string          `json:"type"`
	Name    string          `json:"name"`
	Version string          `json:"version,omitempty"`
	PURL    string          `json:"purl,omitempty"`
	Hashes  []ComponentHash `json:"hashes,omitempty"`
}

// ComponentHash is the hash of a module's files, as go.sum has it.
type ComponentHash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

// ReadBOM reads the bill of materials of this program.
func ReadBOM() BOM {
	b := ReadBuild()
	bom := BOM{Format: "CycloneDX", Spec: "1.5", Version: 1, Metadata: BOMMetadata{Timestamp: b.Time}}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return bom
	}
	bom.Metadata.Component = Component{Type: "application", Name: info.Main.Path, Version: b.Version}
	bom.Components = append(bom.Components, module(&debug.Module{Path: "std", Version: strings.TrimPrefix(b.Go, "go")}))
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		bom.Components = append(bom.Components, module(m))
	}
	return bom
}

func module(m *debug.Module) Component {
	c := Component{Type: "library", Name: m.Path, Version: m.Version, PURL: "pkg:golang/" + m.Path + "@" + m.Version}
	sum, ok := strings.CutPrefix(m.Sum, "h1:")
	if raw, err := base64.StdEncoding.DecodeString(sum); ok && err == nil {
		c.Hashes = []ComponentHash{{Algorithm: "SHA-256", Content: hex.EncodeToString(raw)}}
	}
	return c
}
