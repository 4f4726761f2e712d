package schema_test

import (
	"flag"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store/schema"
)

var updateCatalog = flag.Bool("update-catalog", false, "write the needed catalogue from a freshly migrated database")

func TestNeededCatalogIsThatOfAFreshlyMigratedDatabase(t *testing.T) {
	url := unmigrated(t)
	migrate(t, url)
	tx, err := connect(t, url).Begin(t.Context())
	require.NoError(t, err)
	fresh, err := schema.LiveCatalogJSON(t.Context(), tx)
	require.NoError(t, err)
	if *updateCatalog {
		require.NoError(t, os.WriteFile(schema.CatalogFile, fresh, 0o644))
	}
	kept, err := os.ReadFile(schema.CatalogFile)
	require.NoError(t, err)
	require.Equal(t, string(kept), string(fresh),
		"the migrations have changed, run: go test ./internal/store/schema -run Catalog -update-catalog")
}
