package console

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/trmtracking/processor/internal/cli"
)

// Auth says who may act. The zero value lets nobody.
type Auth struct {
	Write   bool
	Token   string         // an operator who knows it may act; "" for nobody
	Header  string         // names the operator, in requests of Proxies only; "" for none
	Proxies []netip.Prefix // that authenticate operators
	Secret  string         // the same on every instance, known to no client
}

const (
	cookieName = "processor_console"
	sessionFor = 8 * time.Hour
	tokenFor   = time.Hour // of a page's token
	maxName    = 80        // of an operator, in bytes
)

// guard proves who acts. It keeps nothing: a session is a signed cookie, so that
// it is good at every instance.
type guard struct {
	Auth
	key    []byte
	tries  *rate.Limiter
	origin *http.CrossOriginProtection
}

func newGuard(a Auth) (*guard, error) {
	if a.Header != "" && len(a.Proxies) == 0 {
		return nil, errors.New("CONSOLE_USER_HEADER needs CONSOLE_TRUSTED_PROXIES: from any other address the header proves nothing")
	}
	if a.Write && a.Token == "" && a.Header == "" {
		return nil, errors.New("CONSOLE=write needs CONSOLE_TOKEN_FILE or CONSOLE_USER_HEADER: nobody could prove who they are")
	}
	key := sha256.Sum256([]byte("console\x00" + a.Token + "\x00" + a.Secret))
	return &guard{Auth: a, key: key[:], tries: rate.NewLimiter(1, 5), origin: http.NewCrossOriginProtection()}, nil
}

// open reports whether this instance changes anything.
func (g *guard) open() bool { return g.Write }

func (g *guard) hasToken() bool { return g.Token != "" }

func (g *guard) sign(purpose, text string) string {
	mac := hmac.New(sha256.New, g.key)
	mac.Write([]byte(purpose + "\x00" + text))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func (g *guard) signed(purpose, text, signature string) bool {
	return subtle.ConstantTimeCompare([]byte(g.sign(purpose, text)), []byte(signature)) == 1
}

// session is the content of the cookie.
type session struct {
	Name    string `json:"n"`
	Expires int64  `json:"e"` // Unix seconds
}

// operator returns who sent a request, "" if that is not proven.
func (g *guard) operator(r *http.Request) string {
	if !g.Write {
		return ""
	}
	if g.Header != "" && g.fromProxy(r) {
		if name := r.Header.Get(g.Header); name != "" && len(name) <= maxName {
			return cli.VisibleLine(name)
		}
	}
	if g.Token == "" {
		return ""
	}
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return ""
	}
	text, signature, _ := strings.Cut(cookie.Value, ".")
	if !g.signed("session", text, signature) {
		return ""
	}
	content, err := base64.RawURLEncoding.DecodeString(text)
	var s session
	if err != nil || json.Unmarshal(content, &s) != nil || time.Now().Unix() > s.Expires {
		return ""
	}
	return s.Name
}

func (g *guard) fromProxy(r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && slices.ContainsFunc(g.Proxies, func(p netip.Prefix) bool { return p.Contains(addr.Unmap()) })
}

// session returns who may act, and the token of a page for them.
func (g *guard) session(_ http.ResponseWriter, r *http.Request) (operator, token string) {
	operator = g.operator(r)
	if operator == "" {
		return "", ""
	}
	at := strconv.FormatInt(time.Now().Unix(), 10)
	return operator, at + "." + g.sign("page", operator+"\x00"+at)
}

// The reasons for which an action is refused.
var (
	errReadOnly  = errors.New("this instance changes nothing: set CONSOLE=write")
	errNobody    = errors.New("sign in first: it is not proven who you are")
	errForgery   = errors.New("this request was not made by a page of this console")
	errOldPage   = errors.New("the page is too old: reload it and repeat the action")
	errTooMany   = errors.New("too many attempts: wait a few seconds")
	errBadToken  = errors.New("the token is not the one of CONSOLE_TOKEN_FILE")
	errNoName    = errors.New("say your name: it is recorded with every action")
	errNoReason  = errors.New("say why: the reason is recorded with the action")
	errUnconfirm = errors.New("confirm the action first")
)

// signOut has the browser forget its session.
func (g *guard) signOut(w http.ResponseWriter) {
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: Root, MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteStrictMode})
}

// allow returns who acts, or why the request is refused.
func (g *guard) allow(r *http.Request) (operator string, err error) {
	if !g.Write {
		return "", errReadOnly
	}
	if g.origin.Check(r) != nil {
		return "", errForgery
	}
	if operator = g.operator(r); operator == "" {
		return "", errNobody
	}
	at, signature, _ := strings.Cut(r.PostFormValue("token"), ".")
	if !g.signed("page", operator+"\x00"+at, signature) {
		return "", errForgery
	}
	made, err := strconv.ParseInt(at, 10, 64)
	if err != nil || time.Since(time.Unix(made, 0)) > tokenFor {
		return "", errOldPage
	}
	return operator, nil
}

// signIn checks the token and sets the cookie.
func (g *guard) signIn(w http.ResponseWriter, r *http.Request) error {
	switch { // before the form is read, for which the client may let us wait
	case !g.Write || g.Token == "":
		return errReadOnly
	case g.origin.Check(r) != nil:
		return errForgery
	case !g.tries.Allow():
		return errTooMany
	}
	switch name := strings.TrimSpace(r.PostFormValue("name")); {
	case subtle.ConstantTimeCompare([]byte(r.PostFormValue("secret")), []byte(g.Token)) != 1:
		return errBadToken
	case name == "" || len(name) > maxName:
		return errNoName
	default:
		content, err := json.Marshal(session{Name: cli.VisibleLine(name), Expires: time.Now().Add(sessionFor).Unix()})
		if err != nil {
			return err
		}
		text := base64.RawURLEncoding.EncodeToString(content)
		http.SetCookie(w, &http.Cookie{
			Name: cookieName, Value: text + "." + g.sign("session", text), Path: Root, MaxAge: int(sessionFor.Seconds()),
			HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil || g.fromProxy(r) && r.Header.Get("X-Forwarded-Proto") == "https",
		})
		return nil
	}
}
