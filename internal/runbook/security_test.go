package runbook_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/testenv"
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

// rights is a user of the service's servers made by deploy/security.
type rights struct {
	redis, postgres string
	environ         []string
}

// secondStream is another stream to which the rights extend.
func secondStream(dep *servicetest.Deployment) string { return dep.Stream + "-b" }

// grant makes a user as the files of deploy/security do it.
func grant(t *testing.T, dep *servicetest.Deployment, who, recompute string, operator bool) rights {
	t.Helper()
	password := rand.Text()
	secrets := t.TempDir()
	secret := func(name, content string) string {
		file := filepath.Join(secrets, name)
		require.NoError(t, os.WriteFile(file, []byte(content+"\n"), 0o600))
		return file
	}
	admin := dep.Client()
	tool(t, []string{
		"REDIS_USER=" + who, "REDIS_PASSWORD_FILE=" + secret("redis", password), "RECOMPUTE_STREAM=" + recompute, "TIMING_STREAM=" + dep.Stream + ":crossings",
		"REDIS_TELEMETRY_STREAM=" + dep.Stream + "," + secondStream(dep), "REDIS_CONSUMER_GROUP=" + dep.Group, fmt.Sprintf("OPERATOR=%t", operator),
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
	args := []string{dep.PostgresURL, "-Xq", "-v", "role=" + who}
	if operator {
		args = append(args, "-v", "operator=true")
	}
	tool(t, nil, "psql", append(args, "-f", "../../deploy/security/postgres.sql")...)

	as := func(server string) string {
		u, err := url.Parse(server)
		require.NoError(t, err)
		u.User = url.UserPassword(who, password)
		return u.String()
	}
	r := rights{redis: as(dep.RedisURL), postgres: as(dep.PostgresURL)}
	r.environ = dep.Environ("REDIS_URL=", "POSTGRES_URL=", "MIGRATE=verify", "RECOMPUTE_STREAM="+recompute, "TIMING_STREAM="+dep.Stream+":crossings",
		"REDIS_URL_FILE="+secret("redis-url", r.redis), "POSTGRES_URL_FILE="+secret("postgres-url", r.postgres))
	r.environ = append(r.environ, eager()...)
	return r
}

// The files that deploy/security has for operators make the rights that the
// service needs, and no more than that.
func TestTheServiceWorksWithTheLeastRights(t *testing.T) {
	testenv.Slow(t)
	for _, name := range []string{"redis-cli", "psql", "sha256sum"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED: %s is not installed, so the files of deploy/security were not tried", name)
		}
	}
	dep := servicetest.New(t)
	suffix := strings.ToLower(rand.Text()[:10])
	recompute := dep.Stream + ":recompute"
	service := grant(t, dep, "least_"+suffix, recompute, false)
	operator := grant(t, dep, "operator_"+suffix, recompute, true)

	dep.Publish(servicetest.Records(0, 4)...)
	foreign(dep, "old-service-1", 2) // the claim sweep needs rights of its own
	one := servicetest.Spawn(t, append(service.environ, "INSTANCE_ID=one"), "run")
	one.AwaitReady()
	two := servicetest.Spawn(t, append(service.environ, "INSTANCE_ID=two"), "run")
	two.AwaitReady()
	testenv.Wait(t, 20*time.Second, func() error {
		n, err := dep.Client().XLen(t.Context(), dep.Stream+":crossings").Result()
		if err == nil && n == 0 {
			err = errors.New("nothing is published on TIMING_STREAM")
		}
		return err
	})
	dep.Publish(servicetest.InvalidRecord(servicetest.IMEI, 10))
	dep.Publish(servicetest.Records(20, 4)...)
	dep.AwaitStored(8, 30*time.Second)
	dep.AwaitDeadLetters(1)
	require.NoError(t, dep.Client().XAdd(t.Context(), &redis.XAddArgs{
		Stream: recompute, Values: []string{"device_id", servicetest.IMEI, "from", "2026-01-01T00:00:00Z", "to", "2026-01-02T00:00:00Z"},
	}).Err())

	denied := servicetest.Spawn(t, service.environ, "device", "faulty", servicetest.IMEI, "--from", "2023-01-01T00:00:00Z", "--to", "2024-01-01T00:00:00Z")
	require.Equal(t, fault.Config, denied.Exit(60*time.Second))
	require.Contains(t, denied.Errors(), "grant update (faulty) on public.positions")
	fences := servicetest.File(t, `{"type": "Feature", "properties": {"id": "a", "name": "a"}, "geometry":
		{"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]}}`)
	for _, args := range [][]string{
		{"doctor"},
		{"members"},
		{"lag"},
		{"device", "recompute", servicetest.IMEI},
		{"device", "rehydrate", servicetest.IMEI},
		{"device", "faulty", servicetest.IMEI, "--from", "2023-01-01T00:00:00Z", "--to", "2024-01-01T00:00:00Z"},
		{"geofence", "import", fences},
		{"dlq", "list"},
		{"dlq", "retry", "--all", "--unchecked"},
		{"claim", "--member", "one"},
		{"streams", "add", secondStream(dep)},
		{"streams", "drain", secondStream(dep)},
		{"streams", "remove", secondStream(dep)},
		{"streams"},
		{"device", "erase", servicetest.IMEI, "--yes", "--reason", "test"},
	} {
		p := servicetest.Spawn(t, operator.environ, args...)
		code := p.Exit(60 * time.Second)
		said := p.Output() + p.Errors()
		if args[0] != "doctor" { // what it finds here is not about rights
			require.Less(t, code, 2, "%v: %s", args, said)
		}
		require.NotContains(t, said, "NOPERM", "%v", args)
		require.NotContains(t, said, "permission denied", "%v", args)
	}
	for who, want := range map[string]int64{"least_" + suffix: 0, "operator_" + suffix: 2} {
		n, err := dep.Count("select count(*) from pg_roles r where rolname in ('pg_read_all_stats', 'pg_signal_backend') and pg_has_role('" + who + "', r.oid, 'usage')")
		require.NoError(t, err)
		require.EqualValues(t, want, n, who)
	}
	resize := servicetest.Spawn(t, operator.environ, "shards", "resize", "8")
	testenv.Wait(t, 30*time.Second, func() error {
		if !strings.Contains(resize.Errors(), "stop the instances now") {
			return fmt.Errorf("it says %q", resize.Errors())
		}
		return nil
	})
	require.Zero(t, one.Terminate())
	require.Zero(t, two.Terminate())
	require.Zero(t, resize.Exit(60*time.Second), resize.Output()+resize.Errors())
	for _, text := range []string{one.Output(), one.Errors(), two.Output(), two.Errors()} {
		for _, r := range []rights{service, operator} {
			u, err := url.Parse(r.redis)
			require.NoError(t, err)
			password, _ := u.User.Password()
			require.NotContains(t, text, password)
		}
		require.NotContains(t, text, "permission denied")
		require.NotContains(t, text, "NOPERM")
	}
	for _, who := range []string{"least_" + suffix, "operator_" + suffix} {
		require.Empty(t, logEntriesOf(t, dep, who), "Redis refused %s nothing", who)
	}
	refused(t, dep, service, recompute)
}

// The roles of the compose file: an owner that migrates and a service that works,
// neither of them a superuser.
func TestTheServiceWorksWithTheRolesOfTheComposeFile(t *testing.T) {
	testenv.Slow(t)
	if _, err := exec.LookPath("psql"); err != nil {
		t.Skip("SKIPPED: psql is not installed, so deploy/security/roles.sql was not tried")
	}
	dep := servicetest.New(t)
	dep.PostgresURL = testenv.Postgres(t) // not migrated
	suffix := strings.ToLower(rand.Text()[:10])
	owner, role := "owner_"+suffix, "service_"+suffix
	psql := func(url string, args ...string) {
		t.Helper()
		tool(t, nil, "psql", append([]string{url, "-Xq"}, args...)...)
	}
	psql(dep.PostgresURL, "-v", "owner="+owner, "-v", "owner_password=a", "-v", "role="+role, "-v", "password=b", "-f", "../../deploy/security/roles.sql")
	t.Cleanup(func() {
		for _, name := range []string{role, owner} {
			cmd := exec.CommandContext(context.Background(), "psql", dep.PostgresURL, "-Xqc", "drop owned by "+name+" cascade; drop role "+name)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("drop the role: %v: %s", err, out)
			}
		}
	})
	as := func(who, password string) string {
		u, err := url.Parse(dep.PostgresURL)
		require.NoError(t, err)
		u.User = url.UserPassword(who, password)
		return u.String()
	}
	up := servicetest.Spawn(t, dep.Environ("POSTGRES_URL="+as(owner, "a")), "migrate", "up")
	require.Zero(t, up.Exit(30*time.Second), up.Errors())
	psql(as(owner, "a"), "-v", "role="+role, "-f", "../../deploy/security/postgres.sql")
	dep.Publish(servicetest.Records(0, 4)...)
	p := dep.Run("POSTGRES_URL="+as(role, "b"), "MIGRATE=verify", servicetest.FourShards)
	p.AwaitReady()
	dep.AwaitStored(4, 20*time.Second)
	require.Zero(t, p.Terminate())
	n, err := dep.Count("select count(*) from pg_roles where rolname in ('" + owner + "', '" + role + "') and (rolsuper or rolcreaterole or rolcreatedb or rolbypassrls)")
	require.NoError(t, err)
	require.Zero(t, n)
}

// refused requires that the service can do no harm: not to the streams it reads, to
// what has happened, or to what others own. The keys are those that there are.
func refused(t *testing.T, dep *servicetest.Deployment, service rights, recompute string) {
	t.Helper()
	who := dep.Client()
	before := func() (state []string) {
		for _, key := range []string{dep.Stream, dep.Stream + ":dlq", recompute} {
			dump, err := who.Dump(t.Context(), key).Result()
			if err != nil && !errors.Is(err, redis.Nil) {
				require.NoError(t, err)
			}
			state = append(state, dump)
		}
		return state
	}
	had := before()
	var lines [][]string
	add := func(words ...string) { lines = append(lines, words) }
	for _, key := range []string{dep.Stream, dep.Stream + ":dlq", recompute} {
		add("del", key)
		add("unlink", key)
		add("set", key, "1")
		add("rename", key, key+"2")
		add("expire", key, "1")
		add("pexpire", key, "1")
		add("xtrim", key, "maxlen", "0")
		add("copy", key, key+"2")
		add("eval", "return redis.call('del', KEYS[1])", "1", key)
		add("eval", "return redis.call('set', KEYS[1], 1)", "1", key)
		add("eval", "return redis.call('xtrim', KEYS[1], 'maxlen', 0)", "1", key)
	}
	for _, key := range []string{dep.Stream, recompute} {
		add("xdel", key, "0-1")
		add("xadd", key, "maxlen", "0", "*", "a", "b")
		add("eval", "return redis.call('xadd', KEYS[1], 'maxlen', 0, '*', 'a', 'b')", "1", key)
	}
	add("del", dep.Stream+"x")
	add("set", "other", "1")
	add("get", "other")
	add("flushall")
	add("config", "get", "*")
	add("acl", "list")
	add("keys", "*")
	add("xgroup", "destroy", dep.Stream, dep.Group)
	for _, line := range lines {
		out, _ := exec.CommandContext(t.Context(), "redis-cli", append([]string{"--no-auth-warning", "-u", service.redis}, line...)...).CombinedOutput()
		require.Regexp(t, "NOPERM|ACL failure in script|The user executing the script can't", string(out), line)
	}
	require.Equal(t, had, before(), "the streams are as they were")

	statements := []string{
		"update positions set faulty = true", "drop table positions", "truncate positions", "create table public.mine ()",
		"truncate processor.shards", "alter table processor.audit disable trigger all", "create function processor.mine() returns void language sql as ''",
		"select lo_import('/etc/passwd')", "copy positions to program 'cat'", "select pg_terminate_backend(0) from pg_read_file('/etc/passwd')",
		"update processor.goose_db_version set version_id = 1",
	}
	for _, table := range []string{"audit", "losses", "settings"} {
		statements = append(statements, "update processor."+table+" set "+map[string]string{
			"audit": "who = ''", "losses": "entries = 0", "settings": "value = ''",
		}[table])
	}
	for _, table := range []string{
		"audit", "losses", "settings", "assignments", "geofence_set", "geofences", "incidents", "leader", "progress", "requests", "shards", "goose_db_version",
	} {
		statements = append(statements, "delete from processor."+table, "truncate processor."+table)
	}
	for _, sql := range statements {
		out, err := exec.CommandContext(t.Context(), "psql", service.postgres, "-Xqc", sql).CombinedOutput()
		require.Error(t, err, sql)
		require.Regexp(t, "permission denied|must be owner|must be superuser", string(out), sql)
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

// The dead letters have another default name on a Cluster, which the file cannot know of.
func TestTheRightsReachTheDeadLettersUnderEachDefaultName(t *testing.T) {
	for _, name := range []string{"redis-cli", "sha256sum"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED: %s is not installed, so the file of deploy/security was not tried", name)
		}
	}
	corner := testenv.Redis(t)
	admin, who := corner.Client(), "letters_"+strings.ToLower(rand.Text()[:10])
	password := filepath.Join(t.TempDir(), "redis")
	require.NoError(t, os.WriteFile(password, []byte(rand.Text()+"\n"), 0o600))
	t.Cleanup(func() { admin.Do(context.Background(), "acl", "deluser", who) })
	bare, braced := "telemetry:"+who, "telemetry:{"+who+"}"
	for _, tt := range []struct {
		named          string
		allowed, other []string
	}{
		{"", []string{bare + ":dlq", "{" + bare + "}:dlq", braced + ":dlq"}, []string{"{" + braced + "}:dlq"}},
		{who + ":dlq", []string{who + ":dlq"}, []string{bare + ":dlq", "{" + bare + "}:dlq", braced + ":dlq"}},
	} {
		tool(t, []string{
			"REDIS_USER=" + who, "REDIS_PASSWORD_FILE=" + password, "REDIS_TELEMETRY_STREAM=" + bare + "," + braced, "REDIS_DLQ_STREAM=" + tt.named,
		}, "../../deploy/security/redis.sh", "-u", corner.URL)
		try := func(key string) string {
			answer, err := admin.Do(t.Context(), "acl", "dryrun", who, "xadd", key, "*", "a", "b").Text()
			require.NoError(t, err)
			return answer
		}
		for _, key := range tt.allowed {
			require.Equal(t, "OK", try(key), key)
		}
		for _, key := range tt.other {
			require.Contains(t, try(key), "permissions", key)
		}
	}
}
