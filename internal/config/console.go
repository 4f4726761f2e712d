package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// Secret is text that is never printed.
type Secret string

// Reveal returns the text.
func (s Secret) Reveal() string { return string(s) }

// String returns that there is one.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return hidden
}

// Format prints the value without the secret, whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) } // the writer reports it

// MarshalText returns the value without the secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Proxies are networks, a list in text.
type Proxies string

// Prefixes returns the networks.
func (p Proxies) Prefixes() (list []netip.Prefix, err error) {
	for text := range strings.SplitSeq(string(p), ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				return nil, fmt.Errorf("%q is neither an address nor a network such as 10.0.0.0/8", text)
			}
			prefix = netip.PrefixFrom(addr, addr.BitLen())
		}
		list = append(list, prefix.Masked())
	}
	return list, nil
}

// shortestToken is the least number of characters of a token.
const shortestToken = 16

func (c *Console) check(r *report) {
	if _, err := c.Proxies.Prefixes(); err != nil {
		r.add("CONSOLE_TRUSTED_PROXIES", string(c.Proxies), "must be addresses or networks such as 10.0.0.0/8, separated by commas")
	}
	if c.UserHeader != "" && c.Proxies == "" {
		r.add("CONSOLE_USER_HEADER", c.UserHeader, "needs CONSOLE_TRUSTED_PROXIES: from any other address it proves nothing")
	}
	if c.Token != "" && len(c.Token) < shortestToken {
		r.add("CONSOLE_TOKEN", c.Token.String(), "must have at least %d characters", shortestToken)
	}
	if c.Mode == "write" && c.Token == "" && c.UserHeader == "" && !r.has("CONSOLE_TOKEN"+fileSuffix) {
		r.add("CONSOLE", c.Mode, "needs CONSOLE_TOKEN_FILE or CONSOLE_USER_HEADER: otherwise nobody can prove who acts")
	}
	if u, err := url.Parse(c.Tiles); c.Tiles != "" && (err != nil || u.Host == "" || !strings.Contains(c.Tiles, "{z}")) {
		r.add("CONSOLE_TILES", c.Tiles, "must be a URL with {z}, {x} and {y}")
	}
}
