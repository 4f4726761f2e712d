package e2e_test

import (
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// Policies that hide rows and rules that rewrite statements are found before an entry
// is acknowledged, not after.
func TestPoliciesAndRulesOnPositionsAreRefused(t *testing.T) {
	for name, damage := range map[string]string{
		"row security": "alter table positions enable row level security; alter table positions force row level security; create policy p on positions using (device_id = 'a')",
		"rule":         "create rule quiet as on insert to positions do instead nothing",
	} {
		t.Run(name, func(t *testing.T) {
			dep := servicetest.New(t)
			u, err := url.Parse(dep.PostgresURL)
			require.NoError(t, err)
			role := u.Path[1:] + "_role" // of this database alone
			dep.Exec(fmt.Sprintf("create role %[1]s login; grant %[1]s to current_user; alter table positions owner to %[1]s; alter schema processor owner to %[1]s; "+
				"grant all on all tables in schema processor to %[1]s", role))
			defer dep.Exec("reassign owned by " + role + " to current_user; drop owned by " + role + "; drop role " + role)
			dep.Exec(damage)
			u.User = url.User(role)
			dep.Publish(servicetest.Records(0, 4)...)
			p := dep.Run("POSTGRES_URL="+u.String(), "MIGRATE=verify", servicetest.FourShards)
			require.Equal(t, 5, p.Exit(40*time.Second), p.Output())
			require.Contains(t, p.Output(), name+" on public.positions")
			verify := servicetest.Spawn(t, dep.Environ("POSTGRES_URL="+u.String()), "migrate", "verify")
			require.Equal(t, 5, verify.Exit(40*time.Second), verify.Output())
			pending, err := dep.Client().XLen(t.Context(), dep.Stream).Result()
			require.NoError(t, err)
			require.Equal(t, int64(4), pending)
		})
	}
}
