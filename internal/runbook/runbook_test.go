package runbook_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// root is the repository; pages are named relative to it.
const root = "../../"

// frontPage is where an operator starts.
const frontPage = "OPERATIONS.md"

// notExecuted are commands in blocks that are not run here, and why.
var notExecuted = map[string]string{
	"kubectl":  "needs a cluster; the manifests are checked in deploy",
	"docker":   "needs an engine; the files are checked in deploy",
	"curl":     "curl is not everywhere; that the profile is served is tested with the HTTP endpoint",
	"loadtest": "it takes minutes; that it leaves named servers as they were is tested in loadtest",
}

// step is one block of commands and what its output must show.
type step struct {
	script  string
	retry   bool   // to be run again until it shows what it should
	sample  string // of its output, as the page has it
	outcome []*regexp.Regexp
	at      string // page and line
}

// book is the front page with the pages of the runbook and the reference, and
// their blocks by the symptom that is staged for them.
type book struct {
	prelude string
	steps   map[string][]step
	pages   map[string]string          // symptom to page
	text    map[string]string          // of each page
	anchors map[string]map[string]bool // of each page
	others  map[string]string          // commands of blocks that name no symptom, with their place
}

// pagePath is the file of a page of the runbook.
func pagePath(name string) string { return "docs/runbook/" + name + ".md" }

var fence = regexp.MustCompile("^```(\\w*)(?: +(.*))?$")

func readBook(t *testing.T) *book {
	t.Helper()
	b := &book{
		steps: map[string][]step{}, pages: map[string]string{}, text: map[string]string{},
		anchors: map[string]map[string]bool{}, others: map[string]string{},
	}
	files := []string{frontPage}
	for _, folder := range []string{"docs/runbook/", "docs/reference/"} {
		found, err := filepath.Glob(root + folder + "*.md")
		require.NoError(t, err)
		for _, file := range found {
			files = append(files, folder+filepath.Base(file))
		}
	}
	require.Greater(t, len(files), 30)
	for _, page := range files {
		text, err := os.ReadFile(root + page)
		require.NoError(t, err)
		b.text[page], b.anchors[page] = string(text), map[string]bool{}
		b.read(t, page, strings.Split(string(text), "\n"))
	}
	return b
}

// read takes the blocks of a page: commands with runbook=SYMPTOM, and the
// patterns of their output in a comment below, <!-- outcome to -->.
func (b *book) read(t *testing.T, page string, lines []string) {
	t.Helper()
	until := func(i int, end string) (body []string, next int) {
		for i++; i < len(lines) && lines[i] != end; i++ {
			body = append(body, lines[i])
		}
		require.Less(t, i, len(lines), "%s: a block does not end with %s", page, end)
		return body, i
	}
	last := ""
	for i := 0; i < len(lines); i++ {
		if title, ok := strings.CutPrefix(strings.TrimLeft(lines[i], "#"), " "); ok && strings.HasPrefix(lines[i], "#") {
			b.anchors[page][anchor(title)] = true
		}
		at := fmt.Sprintf("%s:%d", page, i+1)
		var body []string
		if lines[i] == "<!-- outcome" {
			require.NotEmpty(t, last, "%s: an outcome that follows no block", at)
			body, i = until(i, "-->")
			s := &b.steps[last][len(b.steps[last])-1]
			for _, expression := range body {
				s.outcome = append(s.outcome, regexp.MustCompile(expression))
			}
			continue
		}
		m := fence.FindStringSubmatch(lines[i])
		if m == nil {
			continue
		}
		body, i = until(i, "```")
		if m[1] == "text" && last != "" {
			b.steps[last][len(b.steps[last])-1].sample = strings.Join(body, "\n") + "\n"
		}
		if m[1] != "sh" {
			continue
		}
		symptom, retry := "", false
		for _, word := range strings.Fields(m[2]) {
			if name, ok := strings.CutPrefix(word, "runbook="); ok {
				symptom = name
			}
			retry = retry || word == "retry"
		}
		switch symptom {
		case "prelude":
			b.prelude = strings.Join(body, "\n")
		case "":
			for _, line := range body {
				if name, _, ok := strings.Cut(line, "="); ok && name == strings.ToUpper(name) && !strings.Contains(name, " ") {
					continue // a variable for the commands below
				}
				b.others[strings.Fields(line)[0]] = at
			}
		default:
			if known, ok := b.pages[symptom]; ok {
				require.Equal(t, known, page, "runbook=%s is used in two pages", symptom)
			}
			b.pages[symptom], last = page, symptom
			b.steps[symptom] = append(b.steps[symptom], step{script: strings.Join(body, "\n"), retry: retry, at: at})
		}
	}
}

// anchor is what GitHub makes of a heading.
func anchor(title string) string {
	keep := func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			return r
		}
		return -1
	}
	return strings.Map(keep, strings.ToLower(title))
}

// staged is a symptom that has been brought about.
type staged struct {
	settings []string       // of the commands, beside those of the place
	before   map[int]func() // called before the block of that number, from 0
	after    func()         // checks what the blocks led to
}

// operator runs blocks as a person does who has a shell and the pages.
type operator struct {
	dep     *servicetest.Deployment
	prelude string
	path    string
}

func newOperator(t *testing.T, dep *servicetest.Deployment, prelude string) *operator {
	t.Helper()
	for _, name := range []string{"bash", "redis-cli", "psql"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED: %s is not installed, so the commands of the runbook were not run", name)
		}
	}
	dir := t.TempDir()
	require.NoError(t, os.Symlink(servicetest.Program(t), filepath.Join(dir, "processor")))
	return &operator{dep: dep, prelude: prelude, path: dir + string(os.PathListSeparator) + os.Getenv("PATH")}
}

func (o *operator) run(settings []string, s step) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-e", "-c", o.prelude+"\n"+s.script)
	cmd.Env = append(o.dep.Environ("SHARDS=4"), append(append(servicetest.Environ(), "PATH="+o.path, "HOME="+os.TempDir()), settings...)...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

var spaces = regexp.MustCompile(`\s+`)

func (s step) judge(out string, err error) error {
	if err != nil {
		return fmt.Errorf("the block at %s: %w, and says\n%s", s.at, err, out)
	}
	flat := spaces.ReplaceAllString(out, " ")
	for _, want := range s.outcome {
		if !want.MatchString(out) && !want.MatchString(flat) {
			return fmt.Errorf("the block at %s does not show %q but\n%s", s.at, want, out)
		}
	}
	return nil
}

// A sample that is not cut shows what the block is run for.
func TestEachSampleShowsTheOutcome(t *testing.T) {
	seen := 0
	for _, steps := range readBook(t).steps {
		for _, s := range steps {
			if s.sample == "" || strings.Contains(s.sample, "…") {
				continue
			}
			seen++
			if err := s.judge(s.sample, nil); err != nil {
				t.Error(err)
			}
		}
	}
	require.Greater(t, seen, 20)
}

// stallLimit is how long a block that says retry may take to show its outcome.
const stallLimit = 40 * time.Second

func TestTheRunbookDoesWhatItSays(t *testing.T) {
	b := readBook(t)
	require.NotEmpty(t, b.prelude)
	for command, at := range b.others {
		require.Contains(t, notExecuted, command, "%s: a block of commands that is not executed needs a reason here, or runbook=NAME", at)
	}
	require.Equal(t, slices.Sorted(maps.Keys(stages)), slices.Sorted(maps.Keys(b.steps)), "each symptom of the document is staged, and the other way round")
	for _, symptom := range slices.Sorted(maps.Keys(b.steps)) {
		t.Run(symptom, func(t *testing.T) {
			dep := servicetest.New(t)
			st := stages[symptom](dep)
			for i := range st.before {
				require.Less(t, i, len(b.steps[symptom]), "the page lacks a block that the stage is for")
			}
			op := newOperator(t, dep, b.prelude)
			var took []time.Duration
			for i, s := range b.steps[symptom] {
				if st.before[i] != nil {
					st.before[i]()
				}
				began := time.Now()
				deadline := began.Add(stallLimit)
				err := s.judge(op.run(st.settings, s))
				for err != nil && s.retry && time.Now().Before(deadline) {
					err = s.judge(op.run(st.settings, s))
				}
				require.NoError(t, err)
				took = append(took, time.Since(began).Round(time.Millisecond))
			}
			if st.after != nil {
				st.after()
			}
			t.Logf("executed: %s, blocks took %v", b.pages[symptom], took)
		})
	}
}

var link = regexp.MustCompile(`\]\(([^)\s]*)\)`)

func TestEachLinkLeadsSomewhere(t *testing.T) {
	b := readBook(t)
	found := 0
	for page, text := range b.text {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			found++
			target, fragment, _ := strings.Cut(m[1], "#")
			if target = path.Join(path.Dir(page), target); strings.HasPrefix(m[1], "#") {
				target = page
			}
			_, err := os.Stat(root + target)
			require.NoError(t, err, "%s: %s leads nowhere", page, m[1])
			if fragment != "" {
				require.True(t, b.anchors[target][fragment], "%s: %s leads to no heading", page, m[1])
			}
		}
	}
	require.Greater(t, found, 100)
}

// otherShape are pages that are no answer to an alert or symptom.
var otherShape = map[string]string{pagePath("load-tests"): "a procedure for servers that nobody uses yet"}

func TestEachPageHasTheSameShape(t *testing.T) {
	b := readBook(t)
	require.LessOrEqual(t, strings.Count(b.text[frontPage], "\n"), 150, "the front page is read in an emergency")
	for page, text := range b.text {
		if path.Dir(page) != "docs/runbook" || otherShape[page] != "" {
			continue
		}
		require.Contains(t, b.text[frontPage], "]("+page+")", "the front page leads to each page")
		paragraphs := strings.SplitN(text, "\n\n", 3)
		require.True(t, strings.HasPrefix(paragraphs[1], "Users "), "%s: begin with what it means for users", page)
		require.Contains(t, paragraphs[1], "`processor doctor`", page)
		var headings []string
		for _, m := range regexp.MustCompile(`(?m)^## (.*)$`).FindAllStringSubmatch(text, -1) {
			headings = append(headings, m[1])
		}
		require.Equal(t, []string{"Fix", "Diagnosis", "Do not"}, headings, page)
	}
}

func portOf(t testing.TB, p *servicetest.Process) string {
	t.Helper()
	_, port, err := net.SplitHostPort(p.Addr())
	require.NoError(t, err)
	return "METRICS_PORT=" + port
}
