package testenv_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/testenv"
)

// Promise 5.
func TestATemplateIsBuiltInTheWorldOfTheTest(t *testing.T) {
	t.Parallel()
	for world, heaps := range map[devenv.World]int{devenv.Plain: 0, devenv.Partitioned: 3, devenv.Hypertable: 3} {
		t.Run(string(world), func(t *testing.T) {
			t.Parallel()
			url := testenv.Postgres(t, testenv.InWorld(world), testenv.WithTemplate(t.Name(), func(ctx context.Context, url string) error {
				if world == devenv.Plain {
					return nil
				}
				conn, err := pgx.Connect(ctx, url)
				if err != nil {
					return err
				}
				_, err = conn.Exec(ctx, `
insert into positions
select 'd', now() - n * interval '1 day', now(), 1, 1, 1, 1, 1, 1, 1, '8', '{}'
from generate_series(0, 900, 300) n`)
				return errors.Join(err, conn.Close(ctx))
			}))
			conn, err := pgx.Connect(t.Context(), url)
			require.NoError(t, err)
			defer conn.Close(context.WithoutCancel(t.Context()))
			var found int
			require.NoError(t, conn.QueryRow(t.Context(), `
select count(*)
from pg_inherits
where inhparent = to_regclass('public.positions')`).Scan(&found))
			require.GreaterOrEqual(t, found, heaps)
		})
	}
}
