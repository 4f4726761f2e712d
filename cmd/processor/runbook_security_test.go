package main

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
	pl := newPlace(t)
	who := "least_" + strings.ToLower(rand.Text()[:10])
	password := rand.Text()
	secrets := t.TempDir()
	secret := func(name, content string) string {
		file := filepath.Join(secrets, name)
		require.NoError(t, os.WriteFile(file, []byte(content+"\n"), 0o600))
		return file
	}

	admin := pl.client()
	tool(t, []string{
		"REDIS_USER=" + who, "REDIS_PASSWORD_FILE=" + secret("redis", password),
		"REDIS_TELEMETRY_STREAM=" + pl.stream, "REDIS_CONSUMER_GROUP=" + pl.group,
	}, "../../deploy/security/redis.sh", "-u", pl.redisURL)
	t.Cleanup(func() { admin.Do(context.Background(), "acl", "deluser", who) })
	shown, err := admin.Do(t.Context(), "acl", "getuser", who).Result()
	require.NoError(t, err)
	require.Contains(t, fmt.Sprint(shown), fmt.Sprintf("%x", sha256.Sum256([]byte(password))))

	pl.exec(fmt.Sprintf("create role %s login password '%s'", who, password))
	t.Cleanup(func() {
		c := context.Background()
		cmd := exec.CommandContext(c, "psql", pl.pgURL, "-Xqc", fmt.Sprintf("drop owned by %s; drop role %s", who, who))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("drop the role: %v: %s", err, out)
		}
	})
	tool(t, nil, "psql", pl.pgURL, "-Xq", "-v", "role="+who, "-f", "../../deploy/security/postgres.sql")

	as := func(server string) string {
		u, err := url.Parse(server)
		require.NoError(t, err)
		u.User = url.UserPassword(who, password)
		return u.String()
	}
	environ := pl.environ("REDIS_URL=", "POSTGRES_URL=", "MIGRATE=verify", fourShards,
		"REDIS_URL_FILE="+secret("redis-url", as(pl.redisURL)), "POSTGRES_URL_FILE="+secret("postgres-url", as(pl.pgURL)))
	environ = append(environ, eager()...)
	pl.publish(rides(0, 4)...)
	pl.foreign("old-service-1", 2) // the claim sweep needs rights of its own
	p := spawn(t, append(environ, "INSTANCE_ID=one"), "run")
	p.awaitReady()
	other := spawn(t, append(environ, "INSTANCE_ID=two"), "run")
	other.awaitReady()
	pl.publish(letter(imei, 10))
	pl.publish(rides(20, 4)...)
	pl.awaitStored(8, 30*time.Second)
	pl.awaitLetters(1)
	doctor := spawn(t, environ, "doctor")
	doctor.exit(30 * time.Second)
	require.NotContains(t, doctor.output()+doctor.errors(), "NOPERM")
	require.Contains(t, doctor.output(), "all that this version needs is there")
	require.Zero(t, terminated(p))
	require.Zero(t, terminated(other))
	require.Empty(t, logEntriesOf(t, pl, who), "Redis refused nothing")
	for _, text := range []string{p.output(), p.errors(), other.output(), doctor.output(), doctor.errors()} {
		require.NotContains(t, text, password)
		require.NotContains(t, text, "permission denied")
	}

	// The user can do no more: neither another key nor another's table, nor harm.
	user := url.UserPassword(who, password)
	u, err := url.Parse(pl.redisURL)
	require.NoError(t, err)
	u.User = user
	for _, line := range []string{"del " + pl.stream + "x", "set other 1", "flushall", "config get *", "xtrim " + pl.stream + " maxlen 0", "xgroup destroy " + pl.stream + " " + pl.group} {
		out, _ := exec.CommandContext(t.Context(), "redis-cli", append([]string{"--no-auth-warning", "-u", u.String()}, strings.Fields(line)...)...).CombinedOutput()
		require.Contains(t, string(out), "NOPERM", line)
	}
	for _, sql := range []string{"update positions set faulty = true", "drop table positions", "create table public.mine ()", "truncate processor.shards"} {
		out, err := exec.CommandContext(t.Context(), "psql", as(pl.pgURL), "-Xqc", sql).CombinedOutput()
		require.Error(t, err, sql)
		require.Regexp(t, "permission denied|must be owner", string(out), sql)
	}
}

// logEntriesOf is what Redis refused a user.
func logEntriesOf(t *testing.T, pl *place, who string) []string {
	t.Helper()
	list, err := pl.client().ACLLog(t.Context(), 128).Result()
	require.NoError(t, err)
	var refused []string
	for _, e := range list {
		if e.Username == who {
			refused = append(refused, e.Reason+" "+e.Object)
		}
	}
	return refused
}
