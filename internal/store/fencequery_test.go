package store_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/testenv"
)

var fenceScope = store.Scope{Stream: "s", Group: "g"}

func fencePool(t *testing.T) *pgxpool.Pool {
	t.Helper()
	url := testenv.Postgres(t, testenv.WithTemplate("migrated", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))
	pool, err := pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func execute(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	_, err := pool.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
}

func number(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) (n int) {
	t.Helper()
	require.NoError(t, pool.QueryRow(t.Context(), sql, args...).Scan(&n))
	return n
}

// raise begins a term of the member test.
func raise(t *testing.T, pool *pgxpool.Pool) int64 {
	t.Helper()
	term, err := store.NewLeader(pool, fenceScope, "test", time.Minute).BeginTerm(t.Context())
	require.NoError(t, err)
	return term
}

const openRequests = "select count(*) from processor.requests where state = 'waiting'"

func TestPlatformFencesAreImportedAndAnInvalidRowIsReported(t *testing.T) {
	t.Parallel()
	pool := fencePool(t)
	execute(t, pool, `create table public.zones (id integer, title text, shape text, kind text, r float8, since timestamptz)`)
	execute(t, pool, `insert into public.zones values
		(1, 'depot', '{"type":"Polygon","coordinates":[[[11,48],[12,48],[12,49],[11,49],[11,48]]]}', 'area', null, null),
		(2, 'tower', '{"type":"Point","coordinates":[11.5,48.5]}', null, 200, '2026-01-01'),
		(3, 'crossed', '{"type":"Polygon","coordinates":[[[11,48],[12,49],[12,48],[11,49],[11,48]]]}', 'area', null, null),
		(4, 'text', 'POLYGON((0 0, 1 1))', 'area', null, null),
		(5, 'nothing', null, 'area', null, null),
		(null, 'nobody', '{"type":"Point","coordinates":[1,2]}', 'circle', 5, null),
		(1, 'twice', '{"type":"Point","coordinates":[1,2]}', 'circle', 5, null)`)
	editor := store.NewFenceEditor(pool, fenceScope, 4, "test")
	term := raise(t, pool)
	query := store.NewFenceQuery(pool, editor, `select id, title as name, shape as geometry, kind, r as radius_m, since as valid_from from public.zones;`, time.Minute)
	renewed, err := query.Renew(t.Context(), term)
	require.NoError(t, err)
	require.Equal(t, 2, renewed.Added)
	require.Len(t, renewed.Bad, 5)
	for i, text := range []string{"row 3, fence 3", "row 4, fence 4", "row 5, fence 5", "row 6", "row 7, fence 1"} {
		require.ErrorContains(t, renewed.Bad[i], text)
	}
	require.Equal(t, 4, number(t, pool, openRequests), "one recompute for each shard")

	// Unchanged rows change nothing.
	renewed, err = query.Renew(t.Context(), term)
	require.NoError(t, err)
	require.Zero(t, renewed.Added+renewed.Closed)
	require.Equal(t, 4, number(t, pool, openRequests))
	execute(t, pool, "update public.zones set r = 300 where id = 2")
	execute(t, pool, "delete from public.zones where title = 'depot'")
	execute(t, pool, "delete from public.zones where title = 'twice'")
	execute(t, pool, "delete from public.zones where id is null") // while it exists no fence is closed
	renewed, err = query.Renew(t.Context(), term)
	require.NoError(t, err)
	require.Equal(t, 1, renewed.Added)
	require.Equal(t, 2, renewed.Closed)
	require.Equal(t, 1, number(t, pool, "select count(*) from processor.geofences where replaced_at is null"))

	// A query that fails reports it, cannot write, and changes nothing.
	for _, bad := range []string{"select nonsense", "delete from public.zones returning id", "select 1; drop table public.zones"} {
		_, err = store.NewFenceQuery(pool, editor, bad, time.Minute).Renew(t.Context(), term)
		require.ErrorContains(t, err, "read the platform's fences")
	}
	require.Equal(t, 4, number(t, pool, "select count(*) from public.zones"))
	require.Equal(t, 1, number(t, pool, "select count(*) from processor.geofences where replaced_at is null"))
}

func TestFencesOfPostGISAreReadThroughAsGeoJSON(t *testing.T) {
	t.Parallel()
	pool := fencePool(t)
	if number(t, pool, "select count(*) from pg_available_extensions where name = 'postgis'") == 0 {
		t.Skip("needs PostGIS: install postgresql-15-postgis-3")
	}
	execute(t, pool, "create extension postgis")
	execute(t, pool, `create table public.zones (id text, geom geometry(geometry, 4326))`)
	execute(t, pool, `insert into public.zones values
		('yard', st_geomfromtext('POLYGON((11 48, 12 48, 12 49, 11 49, 11 48),(11.2 48.2, 11.4 48.2, 11.4 48.4, 11.2 48.2))', 4326)),
		('line', st_geomfromtext('LINESTRING(11 48, 11 49)', 4326)),
		('curve', st_geomfromtext('POINT EMPTY', 4326))`)
	term := raise(t, pool)
	query := store.NewFenceQuery(pool, store.NewFenceEditor(pool, fenceScope, 1, "test"), "select id, st_asgeojson(geom, 15) as geometry from public.zones", time.Minute)
	renewed, err := query.Renew(t.Context(), term)
	require.NoError(t, err)
	require.Equal(t, 2, renewed.Added)
	require.Len(t, renewed.Bad, 1)
	require.ErrorContains(t, renewed.Bad[0], "fence curve")
}

func square(id string, x float64, valid geofence.Span) geofence.Fence {
	return geofence.Fence{
		ID: id, Kind: geofence.Area, Valid: valid, Enabled: true,
		Geometry: fmt.Sprintf(`{"type":"Polygon","coordinates":[[[%v,48],[%v,48],[%v,49],[%v,49],[%v,48]]]}`, x, x+1, x+1, x, x),
	}
}

func TestAnImportKeepsWhatLiesOutsideTheNewSpan(t *testing.T) {
	t.Parallel()
	pool := fencePool(t)
	editor := store.NewFenceEditor(pool, fenceScope, 2, "test")
	do := func(source string, replace bool, fences ...geofence.Fence) store.Edited {
		t.Helper()
		e, err := editor.Import(t.Context(), fences, source, replace)
		require.NoError(t, err)
		return e
	}
	span := func(from, to int64) geofence.Span { return geofence.Span{FromUS: from * 1e6, ToUS: to * 1e6} }
	positionCount := func() map[geofence.Span]string {
		_, rows, err := store.NewFences(pool, time.Minute).Rows(t.Context())
		require.NoError(t, err)
		out := map[geofence.Span]string{}
		for _, r := range rows {
			out[r.Valid] = r.Geometry
		}
		return out
	}
	require.Equal(t, 1, do("import", false, square("a", 1, span(0, 100))).Added)
	require.Equal(t, 1, do("import", false, square("a", 1, span(0, 100))).Same)
	e := do("import", false, square("a", 2, span(20, 30)), square("a", 3, span(40, 200)))
	require.Equal(t, 2, e.Added)
	require.Equal(t, 1, e.Closed)
	require.Equal(t, time.Unix(0, 0).UTC(), *e.From)
	require.Equal(t, time.Unix(200, 0).UTC(), *e.To)
	have := positionCount()
	require.Len(t, have, 4)
	require.Equal(t, have[span(0, 20)], have[span(30, 40)])
	require.Contains(t, have, span(20, 30))
	require.Contains(t, have, span(40, 200))

	// A fence of another source stays unchanged.
	refused := do("query", true, square("a", 5, geofence.Always), square("b", 5, geofence.Always))
	require.Len(t, refused.Refused, 1)
	require.Equal(t, 1, refused.Added)
	require.Len(t, positionCount(), 5)
	// Only the fences given remain valid.
	require.Equal(t, 3, do("import", true, square("a", 2, span(20, 30))).Closed)
	require.Len(t, positionCount(), 2)
	_, err := editor.Import(t.Context(), []geofence.Fence{square("c", 1, span(0, 10)), square("c", 2, span(5, 10))}, "import", false)
	require.ErrorContains(t, err, "overlaps")
}

func circles(first, n int) []geofence.Fence {
	list := make([]geofence.Fence, n)
	for i := range list {
		list[i] = geofence.Fence{
			ID: fmt.Sprint("c", first+i), Kind: geofence.Circle, RadiusM: 50, Enabled: true, Valid: geofence.Always,
			Geometry: fmt.Sprintf(`{"type":"Point","coordinates":[%d,48]}`, first+i),
		}
	}
	return list
}

const fencesInForce = "select count(*) from processor.geofences where replaced_at is null"

func TestReplacingFencesRemovesAtMostATenthUnlessAllowed(t *testing.T) {
	t.Parallel()
	pool := fencePool(t)
	editor := store.NewFenceEditor(pool, fenceScope, 4, "test")
	_, err := editor.Import(t.Context(), circles(1, 100), "import", true)
	require.NoError(t, err)

	_, err = editor.Replace(t.Context(), circles(12, 89), "import", -1)
	var refused *store.RemovalsError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, store.RemovalsError{Removed: 11, Present: 100, Allowed: 10}, *refused)
	require.Equal(t, 100, number(t, pool, fencesInForce))
	require.Equal(t, 4, number(t, pool, openRequests), "those of the first import")

	done, err := editor.Replace(t.Context(), circles(11, 90), "import", -1)
	require.NoError(t, err)
	require.Equal(t, 10, done.Closed)
	_, err = editor.Replace(t.Context(), circles(99, 2), "import", 87)
	require.ErrorContains(t, err, "88 of 90 fences would be removed")
	done, err = editor.Replace(t.Context(), circles(99, 2), "import", 88)
	require.NoError(t, err)
	require.Equal(t, 88, done.Closed)
	require.Equal(t, 2, number(t, pool, fencesInForce))
	done, err = editor.Replace(t.Context(), circles(1, 1), "import", -1)
	require.NoError(t, err, "five of a few may go")
	require.Equal(t, 2, done.Closed)
}

func TestAPlatformThatSuddenlyHasFewFencesIsNotBelievedUntilConfirmed(t *testing.T) {
	t.Parallel()
	pool := fencePool(t)
	execute(t, pool, `create table public.zones as select n::text as id, 20 as radius_m,
		'{"type":"Point","coordinates":[' || n || ',48]}' as geometry from generate_series(1, 10) n`)
	editor := store.NewFenceEditor(pool, fenceScope, 4, "test")
	term := raise(t, pool)
	query := store.NewFenceQuery(pool, editor, "select * from public.zones", time.Minute)
	renew := func() error { _, err := query.Renew(t.Context(), term); return err }
	require.NoError(t, renew())

	execute(t, pool, "delete from public.zones where id::int > 5")
	require.NoError(t, renew(), "half of them")
	require.Equal(t, 5, number(t, pool, fencesInForce))
	for left, gone := range []string{"true", "id::int > 1"} {
		execute(t, pool, "create table public.saved as table public.zones")
		execute(t, pool, "delete from public.zones where "+gone)
		for range 2 {
			require.ErrorContains(t, renew(), fmt.Sprintf("the query yields %d of 5 fences, so nothing was changed: correct the platform, or run processor geofence confirm %d", left, left))
		}
		require.NoError(t, editor.Confirm(t.Context(), 3))
		require.Error(t, renew(), "another number was confirmed")
		require.Equal(t, 5, number(t, pool, fencesInForce))
		if left == 0 {
			execute(t, pool, "insert into public.zones table public.saved")
		}
		execute(t, pool, "drop table public.saved")
	}
	require.NoError(t, editor.Confirm(t.Context(), 1))
	require.NoError(t, renew())
	require.Equal(t, 1, number(t, pool, fencesInForce))
	execute(t, pool, "delete from public.zones")
	require.ErrorContains(t, renew(), "yields 0 of 1", "a confirmation holds once")
}

func TestAShapePrintedDifferentlyIsNoNewVersion(t *testing.T) {
	t.Parallel()
	pool := fencePool(t)
	editor := store.NewFenceEditor(pool, fenceScope, 4, "test")
	fences := circles(1, 1)
	_, err := editor.Import(t.Context(), fences, "import", false)
	require.NoError(t, err)
	execute(t, pool, "delete from processor.requests")
	fences[0].Geometry = `{"bbox":[1,48,1,48],"coordinates":[1.0e0,48.000,520],"note":"\u0000","type":"Point"}`
	done, err := editor.Import(t.Context(), fences, "import", true)
	require.NoError(t, err)
	require.Equal(t, 1, done.Same)
	require.Zero(t, done.Added+done.Closed)
	require.Zero(t, number(t, pool, openRequests))
}

// A corridor is stored with its width. What was printed in another way by hand is
// the same, and what is exported is what was imported.
func TestAnExportIsImportedWithoutAChange(t *testing.T) {
	t.Parallel()
	pool := fencePool(t)
	editor := store.NewFenceEditor(pool, fenceScope, 4, "test")
	fences := circles(1, 2)
	fences[0].Name, fences[0].Enabled = "off", false
	fences[1].Valid = geofence.Span{FromUS: 1_700_000_000_000_001, ToUS: 1_800_000_000_000_000}
	line := `{"type":"LineString","coordinates":[[11,48],[11.1,48]]}`
	fences = append(fences,
		geofence.Fence{ID: "road", Kind: geofence.Area, Geometry: line, WidthM: 12.5, ExitMarginM: 10, MinDwellS: 0.25, Valid: geofence.Always, Enabled: true},
		geofence.Fence{ID: "gate", Kind: geofence.Gate, Geometry: line, MinIntervalS: 30, Valid: geofence.Always, Enabled: true})
	done, err := editor.Import(t.Context(), fences, "import", true)
	require.NoError(t, err)
	require.Equal(t, 4, done.Added)
	execute(t, pool, `update processor.geofences set geometry = '{"type": "LineString", "coordinates": [[11.00, 48.0, 7], [11.1, 48.0, 7]], "note": 1}' where id = 'gate'`)

	_, rows, err := store.NewFences(pool, time.Minute).Rows(t.Context())
	require.NoError(t, err)
	var list []geofence.Fence
	for _, row := range rows {
		list = append(list, row.Fence)
	}
	var out strings.Builder
	require.NoError(t, geofence.WriteFeatures(&out, list))
	again, refused, err := geofence.ParseFeatures([]byte(out.String()), geofence.Defaults{})
	require.NoError(t, err)
	require.Empty(t, refused)
	done, err = editor.Import(t.Context(), again, "import", true)
	require.NoError(t, err)
	require.Equal(t, 4, done.Same, "%+v\n%s", done, out.String())
	require.Zero(t, done.Added+done.Closed)

	// What holds the border still is a property of the version.
	again[3].ExitMarginM = 20
	done, err = editor.Import(t.Context(), again, "import", true)
	require.NoError(t, err)
	require.Equal(t, []int{1, 1, 3}, []int{done.Added, done.Closed, done.Same})
}

func TestAPlatformHoldsItsBordersStill(t *testing.T) {
	t.Parallel()
	pool := fencePool(t)
	execute(t, pool, `create table public.zones (id text, shape text, r float8, margin float8, dwell integer)`)
	execute(t, pool, `insert into public.zones values
		('a', '{"type":"Point","coordinates":[11.5,48.5]}', 200, 12.5, 90),
		('b', '{"type":"Point","coordinates":[11.5,48.5]}', 200, null, null),
		('c', '{"type":"Point","coordinates":[11.5,48.5]}', 200, -1, null)`)
	query := store.NewFenceQuery(pool, store.NewFenceEditor(pool, fenceScope, 4, "test"),
		`select id, shape as geometry, r as radius_m, margin as exit_margin_m, dwell as min_dwell_s from public.zones`, time.Minute)
	renewed, err := query.Renew(t.Context(), raise(t, pool))
	require.NoError(t, err)
	require.Equal(t, 2, renewed.Added)
	require.Len(t, renewed.Bad, 1)
	require.ErrorContains(t, renewed.Bad[0], "row 3, fence c: exit_margin_m -1 is not from 0 to 1000 metres")
	require.Equal(t, 1, number(t, pool, "select count(*) from processor.geofences where exit_margin_m = 12.5 and min_dwell_s = 90 and min_interval_s is null"))
	require.Equal(t, 1, number(t, pool, "select count(*) from processor.geofences where exit_margin_m is null and min_dwell_s is null"))
}
