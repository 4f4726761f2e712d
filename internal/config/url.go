package config

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
)

// hidden is printed for a secret of which nothing can be shown.
const hidden = "(hidden)"

// RedisURL is the address of Redis, credentials included. Every way of
// printing it shows scheme, user, hosts and database only.
type RedisURL string

// PostgresURL is a Postgres connection string in URL or keyword form,
// credentials included. Every way of printing it shows user, hosts and
// database only.
type PostgresURL string

// Reveal returns the value with its credentials, for the driver.
func (u RedisURL) Reveal() string { return string(u) }

// Rotated returns what yields the URL as its file has it now, for new connections;
// nil without a file.
func (c *Redis) Rotated() func() (string, error) {
	read := rereads(c.URLFile.Reveal())
	if read == nil {
		return nil
	}
	return func() (string, error) {
		text, err := read()
		if joined, ok := joinRedis(text); ok {
			text = joined
		}
		return text, err
	}
}

// Rotated does the same for Postgres.
func (c *Postgres) Rotated() func() (string, error) { return rereads(c.URLFile.Reveal()) }

func rereads(file string) func() (string, error) {
	if file == "" {
		return nil
	}
	return func() (string, error) {
		content, err := os.ReadFile(file)
		return strings.TrimSpace(string(content)), err
	}
}

// String returns the value without secrets.
func (u RedisURL) String() string { return redactURL(string(u)) }

// Format prints the value without secrets, whatever the verb.
func (u RedisURL) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, u.String()) }

// LogValue returns the value without secrets.
func (u RedisURL) LogValue() slog.Value { return slog.StringValue(u.String()) }

// MarshalText returns the value without secrets.
func (u RedisURL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// Reveal returns the value with its credentials, for the driver.
func (u PostgresURL) Reveal() string { return string(u) }

// String returns the value without secrets.
func (u PostgresURL) String() string {
	if strings.Contains(string(u), "://") {
		return redactURL(string(u))
	}
	return redactKeywords(string(u))
}

// Format prints the value without secrets, whatever the verb.
func (u PostgresURL) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, u.String()) }

// LogValue returns the value without secrets.
func (u PostgresURL) LogValue() slog.Value { return slog.StringValue(u.String()) }

// MarshalText returns the value without secrets.
func (u PostgresURL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// shown are the parameters that may be printed; any other may hold a secret.
var shown = map[string]bool{
	"addr": true, "master_name": true, "db": true, "skip_verify": true,
	"host": true, "port": true, "user": true, "dbname": true, "database": true,
	"sslmode": true, "target_session_attrs": true,
}

// address is a URL in its parts, as the drivers split it: unlike net/url it
// allows several hosts in one authority.
type address struct {
	scheme string
	user   *url.Userinfo // nil without user information
	hosts  []string      // as written: host, host:port or [v6]:port
	path   string
	query  url.Values
}

// splitURL splits s. It fails if an unescaped character makes the end of the
// password ambiguous.
func splitURL(s string) (address, bool) {
	var a address
	scheme, rest, found := strings.Cut(s, "://")
	if !found || scheme == "" || strings.ContainsAny(s, " \t\r\n#") {
		return a, false
	}
	a.scheme = scheme
	rest, rawQuery, _ := strings.Cut(rest, "?")
	authority := rest
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		authority, a.path = rest[:i], rest[i:]
	}
	if strings.HasPrefix(a.path, "//") || strings.Contains(a.path, "@") || strings.Contains(rawQuery, "@") {
		return a, false
	}
	var err error
	if a.query, err = url.ParseQuery(rawQuery); err != nil {
		return a, false
	}
	hosts := authority
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		probe, err := url.Parse("x://" + authority[:i] + "@host")
		if err != nil {
			return a, false
		}
		a.user, hosts = probe.User, authority[i+1:]
	}
	for host := range strings.SplitSeq(hosts, ",") {
		if !plainHost(host) {
			return a, false
		}
		a.hosts = append(a.hosts, host)
	}
	return a, true
}

// plainHost accepts an empty host, a name or an address, each with or without a
// port. A password split in the wrong place seldom looks like that.
func plainHost(s string) bool {
	name, port := s, ""
	if strings.HasPrefix(s, "[") {
		var closed bool
		if name, port, closed = strings.Cut(s[1:], "]"); !closed {
			return false
		}
		if port != "" && port[0] != ':' {
			return false
		}
		port = strings.TrimPrefix(port, ":")
	} else if i := strings.IndexByte(s, ':'); i >= 0 {
		name, port = s[:i], s[i+1:]
	}
	if port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return false
		}
	}
	for _, c := range name {
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune(".-_:%", c)
		if !ok {
			return false
		}
	}
	return true
}

// redactURL prints one URL, or several separated by commas, without password
// and without parameters that are not known to be harmless.
func redactURL(s string) string {
	if s == "" {
		return ""
	}
	a, ok := splitURL(s)
	if !ok {
		return hidden
	}
	var b strings.Builder
	b.WriteString(a.scheme + "://")
	if a.user != nil {
		b.WriteString(url.User(a.user.Username()).String())
		if _, set := a.user.Password(); set {
			b.WriteString(":***")
		}
		b.WriteByte('@')
	}
	b.WriteString(strings.Join(a.hosts, ",") + a.path)
	kept := url.Values{}
	for name, values := range a.query {
		if shown[name] {
			kept[name] = values
		}
	}
	if len(kept) > 0 {
		query, err := url.QueryUnescape(kept.Encode())
		if err != nil {
			return hidden
		}
		b.WriteString("?" + query)
	}
	return b.String()
}

// redactKeywords does the same for the keyword form. A quoted value or an escape
// makes the split ambiguous; then nothing is shown.
func redactKeywords(s string) string {
	if s == "" {
		return ""
	}
	if strings.ContainsAny(s, `'\`) {
		return hidden
	}
	var kept []string
	for _, word := range strings.Fields(s) {
		name, _, found := strings.Cut(word, "=")
		if !found || name == "" {
			return hidden
		}
		if shown[name] {
			kept = append(kept, word)
		}
	}
	if len(kept) == 0 {
		return hidden
	}
	return strings.Join(kept, " ")
}

// joinRedis merges several addresses into one URL in the notation of go-redis,
// where all but the first are addr parameters. They come as several hosts in
// one URL, or as several URLs separated by commas, of which the later ones
// repeat scheme and credentials or leave the credentials out.
func joinRedis(s string) (string, bool) {
	var first address
	for i, part := range splitRedisURLs(s) {
		a, ok := splitURL(part)
		if !ok {
			return "", false
		}
		if i == 0 {
			first = a
			continue
		}
		same := a.scheme == first.scheme && (a.path == "" || a.path == "/" || a.path == first.path) && len(a.query) == 0
		if a.user != nil {
			same = same && first.user != nil && a.user.String() == first.user.String()
		}
		if !same {
			return "", false
		}
		first.hosts = append(first.hosts, a.hosts...)
	}
	if len(first.hosts) == 1 {
		return s, true
	}
	for _, host := range first.hosts[1:] {
		if host == "" {
			return "", false
		}
		first.query.Add("addr", host)
	}
	u := url.URL{Scheme: first.scheme, User: first.user, Host: first.hosts[0], Path: first.path, RawQuery: first.query.Encode()}
	return u.String(), true
}

// splitRedisURLs splits only where another URL begins: a comma may be part of a
// password.
func splitRedisURLs(s string) []string {
	var parts []string
	for {
		cut := -1
		for _, next := range []string{",redis://", ",rediss://"} {
			if i := strings.Index(s, next); i >= 0 && (cut < 0 || i < cut) {
				cut = i
			}
		}
		if cut < 0 {
			return append(parts, s)
		}
		parts = append(parts, s[:cut])
		s = s[cut+1:]
	}
}

// Cluster reports whether the URL names several addresses and no Sentinel
// master, which means a Redis Cluster.
func (u RedisURL) Cluster() bool {
	a, ok := splitURL(string(u))
	return ok && len(a.query["addr"]) > 0 && a.query.Get("master_name") == ""
}

// Addresses returns the hosts with their ports, or the path of the socket.
func (u RedisURL) Addresses() string {
	joined, ok := joinRedis(string(u))
	a, cut := splitURL(joined)
	switch {
	case !ok || !cut:
		return u.String()
	case a.scheme == "unix":
		return a.path
	}
	port := "6379"
	if a.query.Get("master_name") != "" {
		port = "26379"
	}
	list := append(slices.Clone(a.hosts), a.query["addr"]...)
	for i, host := range list {
		if _, _, err := net.SplitHostPort(host); err != nil {
			list[i] = net.JoinHostPort(cmp.Or(strings.Trim(host, "[]"), "localhost"), port)
		}
	}
	return strings.Join(list, ", ")
}

// MigrateVariable returns the name of the variable that the address for migrations comes from.
func (c *Postgres) MigrateVariable() string {
	if c.MigrateURL != c.URL {
		return "POSTGRES_MIGRATE_URL"
	}
	return "POSTGRES_URL"
}
