package console

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
	"github.com/yuin/goldmark/text"
	"github.com/yuin/goldmark/util"

	"github.com/trmtracking/processor/docs/runbook"
)

//go:embed templates assets
var files embed.FS

// templates are never executed themselves: those of a console know its root.
var templates = template.Must(template.New("").Funcs(functions).ParseFS(files, "templates/*.html"))

func templatesOf(root string) *template.Template {
	return template.Must(templates.Clone()).Funcs(template.FuncMap{"root": func() string { return root }})
}

// page is one screen.
type page struct {
	path  string // below Root, with a slash at its end; "" for the first one
	title string
	nav   string        // the entry of the navigation
	every time.Duration // between two updates; 0 for a page that does not move
	reads []string      // of its address, which its parts that move depend on
	names []string      // its parts, which are templates and IDs
	still []string      // parts that do not change once they are shown
	// follow adds to the states of a page what is heard while it is watched.
	follow func(running context.Context, render renderer) renderer
	// data returns what the templates show.
	data func(ctx context.Context, r *http.Request) (any, error)
}

// query returns what the page reads of an address. What else is there makes no page of its
// own, which would be watched apart.
func (p *page) query(r *http.Request) string {
	all, read := r.URL.Query(), url.Values{}
	for _, name := range p.reads {
		if value := all.Get(name); value != "" {
			read.Set(name, value)
		}
	}
	return read.Encode()
}

// part is a piece of a page that is replaced as a whole.
type part struct {
	ID   string
	HTML template.HTML
}

// frame is what the layout shows around the parts.
type frame struct {
	Title, Nav, Events, Token, Stream, Group, Member, Version string
	Operator                                                  string // who may act here; "" for nobody
	CanAct, MustSignIn, SignedIn                              bool
	Streams                                                   []streamLink // of several, each with this screen
	All                                                       bool         // it is of all streams
	Parts                                                     []part
}

// parts renders the parts of a page.
func (c *Console) parts(p *page, r *http.Request, whole bool) (update, error) {
	data, err := p.data(r.Context(), r)
	if err != nil {
		return nil, err
	}
	u := make(update, len(p.names))
	for _, name := range p.names {
		if !whole && slices.Contains(p.still, name) {
			continue
		}
		var b bytes.Buffer
		if err := c.templates.ExecuteTemplate(&b, name, data); err != nil {
			return nil, fmt.Errorf("show %s: %w", name, err)
		}
		u[name] = b.String()
	}
	return u, nil
}

// servePage renders a whole page.
func (c *Console) servePage(w http.ResponseWriter, r *http.Request, p *page) {
	u, err := c.parts(p, r, true)
	if err != nil {
		c.fail(w, r, http.StatusInternalServerError, err)
		return
	}
	f := c.frame(w, r, p.title, p.nav)
	f.Streams = c.switchTo(p)
	if p.every > 0 {
		f.Events = c.root + "events/" + p.path
		if q := p.query(r); q != "" {
			f.Events += "?" + q
		}
	}
	for _, name := range p.names {
		f.Parts = append(f.Parts, part{name, template.HTML(u[name])}) //nolint:gosec // made by html/template
	}
	c.render(w, http.StatusOK, f)
}

// frame returns the layout for a request.
func (c *Console) frame(w http.ResponseWriter, r *http.Request, title, nav string) frame {
	f := frame{Title: title, Nav: nav, Stream: c.stream.Stream, Group: c.stream.Group, Member: c.cfg.Member, Version: c.cfg.Version, All: c.all != nil, Streams: c.switchTo(nil)}
	f.CanAct = c.guard.open()
	f.Operator, f.Token = c.guard.session(w, r)
	_, err := r.Cookie(cookieName)
	f.SignedIn = f.Operator != "" && err == nil
	f.MustSignIn = f.CanAct && f.Operator == "" && c.guard.hasToken()
	return f
}

func (c *Console) render(w http.ResponseWriter, status int, f frame) {
	var b bytes.Buffer
	if err := c.templates.ExecuteTemplate(&b, "layout", f); err != nil {
		c.log.Error("showing a page failed", "err", err)
		http.Error(w, "this page cannot be shown; the log says why", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // the client may be gone
}

// fail shows an error as a page.
func (c *Console) fail(w http.ResponseWriter, r *http.Request, status int, err error) {
	f := c.frame(w, r, http.StatusText(status), "")
	f.Parts = []part{{"problem", c.html("problem", err.Error())}}
	c.render(w, status, f)
}

// html renders one template.
func (c *Console) html(name string, data any) template.HTML {
	var b bytes.Buffer
	if err := c.templates.ExecuteTemplate(&b, name, data); err != nil {
		c.log.Error("showing a page failed", "part", name, "err", err)
	}
	return template.HTML(b.String()) //nolint:gosec // made by html/template
}

// serveAsset serves a script or the style.
func serveAsset(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("file")
	content, err := files.ReadFile(path.Join("assets", path.Base(name)))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	switch path.Ext(name) {
	case ".js":
		w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
	case ".css":
		w.Header().Set("Content-Type", "text/css; charset=utf-8")
	case ".svg":
		w.Header().Set("Content-Type", "image/svg+xml")
	}
	w.Header().Set("Cache-Control", "max-age=60")
	_, _ = w.Write(content) // the client may be gone
}

// serveRunbook shows a page of the runbook.
func (c *Console) serveRunbook(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimSuffix(r.PathValue("page"), ".md")
	page, err := runbook.Pages.ReadFile(name + ".md")
	if err != nil {
		c.fail(w, r, http.StatusNotFound, errors.New("the runbook has no such page"))
		return
	}
	f := c.frame(w, r, name, "")
	var b bytes.Buffer
	if err := markdown.Convert(page, &b); err != nil {
		c.fail(w, r, http.StatusInternalServerError, fmt.Errorf("show page %s of the runbook: %w; it is in docs/runbook, too", name, err))
		return
	}
	f.Parts = []part{{"runbook", c.html("runbook", template.HTML(b.String()))}} //nolint:gosec // our own page, without raw HTML
	c.render(w, http.StatusOK, f)
}

// markdown renders pages of the runbook. What is between <!-- and --> is for the tests.
var markdown = goldmark.New(goldmark.WithExtensions(extension.Table),
	goldmark.WithParserOptions(parser.WithASTTransformers(util.Prioritized(unlinked{}, 0))))

// unlinked turns links to what is not served here into their text.
type unlinked struct{}

// Transform implements parser.ASTTransformer.
func (unlinked) Transform(page *ast.Document, _ text.Reader, _ parser.Context) {
	var gone []*ast.Link
	_ = ast.Walk(page, func(n ast.Node, entering bool) (ast.WalkStatus, error) { // the function returns no error
		if l, ok := n.(*ast.Link); ok && entering && bytes.HasPrefix(l.Destination, []byte("..")) {
			gone = append(gone, l)
		}
		return ast.WalkContinue, nil
	})
	for _, l := range gone {
		for c := l.FirstChild(); c != nil; c = l.FirstChild() {
			l.Parent().InsertBefore(l.Parent(), l, c)
		}
		l.Parent().RemoveChild(l.Parent(), l)
	}
}
