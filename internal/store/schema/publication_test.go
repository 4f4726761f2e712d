package schema_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/testenv"
)

// A publication of all tables has the server refuse to remove rows of a table
// without replica identity.
func TestPositionsCanBeErasedWhereAllTablesArePublished(t *testing.T) {
	url := unmigrated(t)
	migrate(t, url)
	conn := connect(t, url)
	execute(t, conn, `create publication everything for all tables`)
	execute(t, conn, `insert into positions values ('d', now(), now(), 1, 1, 1, 1, 1, 1, 1, '8', '{}')`)
	note := func() string {
		report, err := schema.VerifyURL(t.Context(), url)
		require.NoError(t, err)
		require.NoError(t, report.Err())
		for _, n := range report.Notes {
			if n.Kind == "replica identity" {
				return n.Have
			}
		}
		return ""
	}
	if testenv.World(t) == devenv.Plain {
		require.Empty(t, note())
		execute(t, conn, `delete from positions`)
		execute(t, conn, `insert into positions values ('d', now(), now(), 1, 1, 1, 1, 1, 1, 1, '8', '{}')`)
		execute(t, conn, `alter table positions replica identity nothing`)
	}
	_, err := conn.Exec(t.Context(), `delete from positions`)
	if err != nil {
		require.ErrorContains(t, err, "replica identity")
		require.Contains(t, note(), "publication everything carries removals")
	} else {
		require.Empty(t, note())
	}
}
