package devenv

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// certificates are the files of a CA and of a server at 127.0.0.1.
type certificates struct{ ca, cert, key string }

// makeCertificates makes them in a folder; the key is the account's.
func makeCertificates(dir string, user *account) (c certificates, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make certificates: %w", err)
		}
	}()
	c = certificates{filepath.Join(dir, "ca.pem"), filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key")}
	began, ended := time.Now().Add(-time.Hour), time.Now().Add(7*24*time.Hour)
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "processor devenv"}, NotBefore: began, NotAfter: ended,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "127.0.0.1"}, NotBefore: began, NotAfter: ended,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	root, errRoot := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	own, errOwn := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err := errors.Join(errRoot, errOwn); err != nil {
		return c, err
	}
	signed, errRoot := x509.CreateCertificate(rand.Reader, authority, authority, &root.PublicKey, root)
	issued, errOwn := x509.CreateCertificate(rand.Reader, server, authority, &own.PublicKey, root)
	key, errKey := x509.MarshalECPrivateKey(own)
	if err := errors.Join(errRoot, errOwn, errKey); err != nil {
		return c, err
	}
	for _, f := range []struct {
		path, kind string
		bytes      []byte
		mode       os.FileMode
	}{{c.ca, "CERTIFICATE", signed, 0o644}, {c.cert, "CERTIFICATE", issued, 0o644}, {c.key, "EC PRIVATE KEY", key, 0o600}} {
		if err := os.WriteFile(f.path, pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.bytes}), f.mode); err != nil {
			return c, err
		}
		if err := user.own(f.path); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (c certificates) postgresArgs() []string {
	return []string{"-c", "ssl=on", "-c", "ssl_cert_file=" + c.cert, "-c", "ssl_key_file=" + c.key}
}

func (c certificates) redisArgs(port string) []string {
	return []string{"--tls-port", port, "--tls-cert-file", c.cert, "--tls-key-file", c.key, "--tls-ca-cert-file", c.ca, "--tls-auth-clients", "no"}
}
