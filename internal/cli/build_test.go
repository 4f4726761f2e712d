package cli

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestABuildFromATarballKnowsItsCommit(t *testing.T) {
	for name, tt := range map[string]struct {
		stamp string
		want  Build
	}{
		"a clone":              {"$Format:%(describe)$\n$Format:%H$\n$Format:%cI$\n", Build{Version: "devel"}},
		"a tarball of a tag":   {"v1.2.0\nabc\n2026-11-28T05:00:00+00:00\n", Build{Version: "v1.2.0", Revision: "abc", Time: "2026-11-28T05:00:00+00:00"}},
		"a tarball without":    {"\nabc\n2026-11-28T05:00:00+00:00\n", Build{Version: "devel", Revision: "abc", Time: "2026-11-28T05:00:00+00:00"}},
		"a build script's own": {"", Build{Version: "devel"}},
	} {
		b := Build{Version: "devel"}
		b.archived(tt.stamp)
		require.Equal(t, tt.want, b, name)
	}
}
