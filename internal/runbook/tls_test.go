package runbook_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// certificates makes an authority and a server's certificate for loopback, in a
// folder that the owner of like can read.
func certificates(t *testing.T, dir, like string) (authority, cert, key string) {
	t.Helper()
	info, err := os.Stat(like)
	require.NoError(t, err)
	owner := info.Sys().(*syscall.Stat_t)
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.Chown(dir, int(owner.Uid), int(owner.Gid)))
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		require.NoError(t, os.Chown(file, int(owner.Uid), int(owner.Gid)))
		return file
	}
	template := func(serial int64) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: fmt.Sprintf("test %d", serial)},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	ca := template(1)
	ca.IsCA, ca.KeyUsage = true, x509.KeyUsageCertSign
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	require.NoError(t, err)
	serverKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	server := template(2)
	server.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	serverDER, err := x509.CreateCertificate(rand.Reader, server, ca, &serverKey.PublicKey, caKey)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(serverKey)
	require.NoError(t, err)
	return write("ca.pem", "CERTIFICATE", caDER), write("server.pem", "CERTIFICATE", serverDER), write("server.key", "PRIVATE KEY", keyDER)
}

func TestBothServersAreReachedByTLSAndNotWithoutTheRightAuthority(t *testing.T) {
	t.Parallel()
	env := testenv.OwnServers(t, devenv.Options{Redis: true, Postgres: true})
	dep := &servicetest.Deployment{T: t, RedisURL: env.Redis.URL(), PostgresURL: env.Postgres.URL(), Stream: "telemetry:teltonika", Group: "processor"}
	ca, cert, key := certificates(t, filepath.Join(env.Dir(), "certificates"), filepath.Join(env.Postgres.Dir(), "data"))

	for _, set := range []string{"ssl_cert_file = '" + cert + "'", "ssl_key_file = '" + key + "'", "ssl = on"} {
		dep.Exec("alter system set " + set)
	}
	dep.Exec("select pg_reload_conf()")
	port, err := devenv.FreePort()
	require.NoError(t, err)
	admin := dep.Client()
	err = admin.Do(t.Context(), "config", "set", "tls-ca-cert-file", ca, "tls-cert-file", cert, "tls-key-file", key,
		"tls-auth-clients", "no", "tls-port", port).Err()
	if err != nil && strings.Contains(err.Error(), "Unknown") {
		t.Skip("SKIPPED: this redis-server was built without TLS")
	}
	require.NoError(t, err)

	secure := []string{
		fmt.Sprintf("REDIS_URL=rediss://127.0.0.1:%d/0", port),
		"POSTGRES_URL=" + strings.Replace(dep.PostgresURL, "sslmode=disable", "sslmode=verify-full&sslrootcert="+ca, 1), servicetest.FourShards,
	}
	p := dep.Run(append(secure, "SSL_CERT_FILE="+ca)...)
	p.AwaitReady()
	dep.Publish(servicetest.Records(0, 3)...)
	dep.AwaitStored(3, 30*time.Second)
	dep.Exec(`do $$ begin
		if exists (select from pg_stat_activity a left join pg_stat_ssl s using (pid) where application_name like 'processor/%' and s.ssl is not true) then
			raise exception 'a session is not encrypted';
		end if;
	end $$`)
	require.Zero(t, p.Terminate())

	stranger := dep.Run(append(secure, "START_TIMEOUT=2s")...)
	require.Equal(t, 4, stranger.Exit(30*time.Second))
	require.Contains(t, stranger.Output(), "certificate signed by unknown authority")
}
