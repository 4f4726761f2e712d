package runbook_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// tool runs a program of the operator's, as an administrator.
func tool(t *testing.T, environ []string, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), environ...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s: %s", name, out)
}

// The files that deploy/security has for operators make the rights that the
// service needs, and no more than that.
func TestTheServiceWorksWithTheLeastRights(t *testing.T) {
	for _, name := range []string{"redis-cli", "psql", "sha256sum"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED: %s is not installed, so the files of deploy/security were not tried", name)
		}
	}
	dep := servicetest.New(t)
	who := "least_" + strings.ToLower(rand.Text()[:10])
	password := rand.Text()
	secrets := t.TempDir()
	secret := func(name, content string) string {
		file := filepath.Join(secrets, name)
		require.NoError(t, os.WriteFile(file, []byte(content+"\n"), 0o600))
		return file
	}

	admin := dep.Client()
	tool(t, []string{
		"REDIS_USER=" + who, "REDIS_PASSWORD_FILE=" + secret("redis", password),
		"REDIS_TELEMETRY_STREAM=" + dep.Stream, "REDIS_CONSUMER_GROUP=" + dep.Group,
	}, "../../deploy/security/redis.sh", "-u", dep.RedisURL)
	t.Cleanup(func() { admin.Do(context.Background(), "acl", "deluser", who) })
	shown, err := admin.Do(t.Context(), "acl", "getuser", who).Result()
	require.NoError(t, err)
	require.Contains(t, fmt.Sprint(shown), fmt.Sprintf("%x", sha256.Sum256([]byte(password))))

	dep.Exec(fmt.Sprintf("create role %s login password '%s'", who, password))
	t.Cleanup(func() {
		c := context.Background()
		cmd := exec.CommandContext(c, "psql", dep.PostgresURL, "-Xqc", fmt.Sprintf("drop owned by %s; drop role %s", who, who))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("drop the role: %v: %s", err, out)
		}
	})
	tool(t, nil, "psql", dep.PostgresURL, "-Xq", "-v", "role="+who, "-f", "../../deploy/security/postgres.sql")

	as := func(server string) string {
		u, err := url.Parse(server)
		require.NoError(t, err)
		u.User = url.UserPassword(who, password)
		return u.String()
	}
	environ := dep.Environ("REDIS_URL=", "POSTGRES_URL=", "MIGRATE=verify", servicetest.FourShards,
		"REDIS_URL_FILE="+secret("redis-url", as(dep.RedisURL)), "POSTGRES_URL_FILE="+secret("postgres-url", as(dep.PostgresURL)))
	environ = append(environ, eager()...)
	dep.Publish(servicetest.Records(0, 4)...)
	foreign(dep, "old-service-1", 2) // the claim sweep needs rights of its own
	p := servicetest.Spawn(t, append(environ, "INSTANCE_ID=one"), "run")
	p.AwaitReady()
	other := servicetest.Spawn(t, append(environ, "INSTANCE_ID=two"), "run")
	other.AwaitReady()
	dep.Publish(servicetest.InvalidRecord(servicetest.IMEI, 10))
	dep.Publish(servicetest.Records(20, 4)...)
	dep.AwaitStored(8, 30*time.Second)
	dep.AwaitDeadLetters(1)
	doctor := servicetest.Spawn(t, environ, "doctor")
	doctor.Exit(30 * time.Second)
	require.NotContains(t, doctor.Output()+doctor.Errors(), "NOPERM")
	require.Contains(t, doctor.Output(), "has everything this version needs")
	require.Zero(t, p.Terminate())
	require.Zero(t, other.Terminate())
	require.Empty(t, logEntriesOf(t, dep, who), "Redis refused nothing")
	for _, text := range []string{p.Output(), p.Errors(), other.Output(), doctor.Output(), doctor.Errors()} {
		require.NotContains(t, text, password)
		require.NotContains(t, text, "permission denied")
	}

	// The user can do no more: neither another key nor another's table, nor harm.
	user := url.UserPassword(who, password)
	u, err := url.Parse(dep.RedisURL)
	require.NoError(t, err)
	u.User = user
	for _, line := range []string{"del " + dep.Stream + "x", "set other 1", "flushall", "config get *", "xtrim " + dep.Stream + " maxlen 0", "xgroup destroy " + dep.Stream + " " + dep.Group} {
		out, _ := exec.CommandContext(t.Context(), "redis-cli", append([]string{"--no-auth-warning", "-u", u.String()}, strings.Fields(line)...)...).CombinedOutput()
		require.Contains(t, string(out), "NOPERM", line)
	}
	for _, sql := range []string{"update positions set faulty = true", "drop table positions", "create table public.mine ()", "truncate processor.shards"} {
		out, err := exec.CommandContext(t.Context(), "psql", as(dep.PostgresURL), "-Xqc", sql).CombinedOutput()
		require.Error(t, err, sql)
		require.Regexp(t, "permission denied|must be owner", string(out), sql)
	}
}

// logEntriesOf is what Redis refused a user.
func logEntriesOf(t *testing.T, dep *servicetest.Deployment, who string) []string {
	t.Helper()
	list, err := dep.Client().ACLLog(t.Context(), 128).Result()
	require.NoError(t, err)
	var refused []string
	for _, e := range list {
		if e.Username == who {
			refused = append(refused, e.Reason+" "+e.Object)
		}
	}
	return refused
}
