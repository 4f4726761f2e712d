package e2e_test

import (
	"bytes"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// lying passes everything on and replaces one text in the replies by another of the
// same length: a server that says it is another version.
func lying(t *testing.T, upstream string, truth, lie string) (addr string) {
	t.Helper()
	require.Len(t, lie, len(truth))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", upstream)
			if err != nil {
				_ = client.Close()
				continue
			}
			go func() {
				_, _ = io.Copy(server, client)
				_ = server.Close()
			}()
			go func() {
				buf := make([]byte, 1<<20)
				for {
					n, err := server.Read(buf)
					_, _ = client.Write(bytes.ReplaceAll(buf[:n], []byte(truth), []byte(lie)))
					if err != nil {
						_ = client.Close()
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// A server that is too old is refused in words, before anything is changed in either.
func TestServersThatAreTooOldAreRefusedInWords(t *testing.T) {
	testenv.SkipIn(t, devenv.Encrypted, "the test cannot read what is sent")
	empty := func(t *testing.T) *servicetest.Deployment {
		t.Helper()
		dep := servicetest.New(t)
		dep.PostgresURL = testenv.Postgres(t) // not migrated
		dep.Publish(servicetest.Records(0, 4)...)
		return dep
	}
	untouched := func(t *testing.T, dep *servicetest.Deployment) {
		t.Helper()
		n, err := dep.Count("select count(*) from information_schema.schemata where schema_name = 'processor'")
		require.NoError(t, err)
		require.Zero(t, n, "nothing was made in Postgres")
		groups, err := dep.Client().XInfoGroups(t.Context(), dep.Stream).Result()
		require.NoError(t, err)
		require.Empty(t, groups, "nothing was made in Redis")
	}
	for _, version := range []string{"13", "14"} {
		t.Run("Postgres "+version, func(t *testing.T) {
			dep := empty(t)
			n, err := dep.Count("select current_setting('server_version_num')::int")
			require.NoError(t, err)
			have := strconv.Itoa(n)
			// Both forms of the version are in the same reply.
			proxy := lying(t, hostOf(t, dep.PostgresURL), have, version+have[2:])
			lied := withHost(t, dep.PostgresURL, proxy)
			p := dep.Run("POSTGRES_URL="+lied, servicetest.FourShards)
			require.Equal(t, 3, p.Exit(40*time.Second), p.Output())
			require.Contains(t, p.Output(), "15 or newer is needed")
			up := servicetest.Spawn(t, dep.Environ("POSTGRES_URL="+lied), "migrate", "up")
			require.Equal(t, 3, up.Exit(40*time.Second), up.Output())
			require.Contains(t, up.Errors(), "15 or newer is needed")
			untouched(t, dep)
		})
	}
	t.Run("Redis 6.2", func(t *testing.T) {
		dep := empty(t)
		info, err := dep.Client().InfoMap(t.Context(), "server").Result()
		require.NoError(t, err)
		have := "redis_version:" + info["Server"]["redis_version"]
		proxy := lying(t, hostOf(t, dep.RedisURL), have, "redis_version:6."+have[len("redis_version:6."):])
		p := dep.Run("REDIS_URL="+withHost(t, dep.RedisURL, proxy), servicetest.FourShards)
		require.Equal(t, 3, p.Exit(40*time.Second), p.Output())
		require.Regexp(t, `Redis at 127\.0\.0\.1:\d+ has version 6\..*: 7\.0 or newer is needed`, p.Output())
		untouched(t, dep)
	})
	t.Run("Redis 6.2 itself", func(t *testing.T) {
		server := filepath.Join(os.Getenv("MATRIX_DIR"), "redis-6.2/bin/redis-server")
		if _, err := os.Stat(server); err != nil {
			t.Skipf("SKIPPED: MATRIX_DIR has no redis-6.2: %v", err)
		}
		t.Setenv("PATH", filepath.Dir(server)+":"+os.Getenv("PATH"))
		env := testenv.OwnServers(t, devenv.Options{Redis: true, Postgres: true})
		dep := &servicetest.Deployment{T: t, RedisURL: env.Redis.URL(), PostgresURL: env.Postgres.URL(), Stream: "telemetry", Group: "processor"}
		dep.Publish(servicetest.Records(0, 4)...)
		p := dep.Run(servicetest.FourShards)
		require.Equal(t, 3, p.Exit(40*time.Second), p.Output())
		require.Contains(t, p.Output(), "has version 6.2")
		untouched(t, dep)
	})
}

func TestAnAppendOnlyFileThatIsOffIsSaidAtTheStart(t *testing.T) {
	testenv.Slow(t)
	env := testenv.OwnServers(t, devenv.Options{Redis: true, Postgres: true, RedisArgs: []string{"--appendonly", "no"}})
	dep := &servicetest.Deployment{T: t, RedisURL: env.Redis.URL(), PostgresURL: env.Postgres.URL(), Stream: "telemetry", Group: "processor"}
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	p.Await("Redis keeps no append-only file")
	require.Zero(t, p.Terminate())
}

func withHost(t *testing.T, server, host string) string {
	t.Helper()
	u, err := url.Parse(server)
	require.NoError(t, err)
	u.Host = host
	return u.String()
}
