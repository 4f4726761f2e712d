package runbook_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// runbook is OPERATIONS.md as this test reads it.
const runbook = "../../OPERATIONS.md"

// notExecuted are sections with commands that are not run here, and why.
var notExecuted = map[string]string{
	"An instance is stalled or gone/curl":     "curl is not everywhere; that the profile is served is tested in internal/httpserver",
	"Load tests on your own servers/loadtest": "it takes minutes; that it leaves named servers as they were is tested in loadtest",
}

// step is one block of commands and what its output must show.
type step struct {
	script  string
	retry   bool // to be run again until it shows what it should
	outcome []*regexp.Regexp
	line    int
}

// book is the blocks of the document by the symptom they belong to.
type book struct {
	prelude  string
	steps    map[string][]step
	sections map[string]string // symptom to section
	anchors  map[string]bool
	others   []string // blocks that name no symptom: section/first word
	text     string
}

// mentions tells whether the document has a word as code.
func (b *book) mentions(word string) bool { return strings.Contains(b.text, "`"+word+"`") }

var fence = regexp.MustCompile("^```(\\w*)(?: +(.*))?$")

func readBook(t *testing.T) *book {
	t.Helper()
	text, err := os.ReadFile(runbook)
	require.NoError(t, err)
	b := &book{steps: map[string][]step{}, sections: map[string]string{}, anchors: map[string]bool{}, text: string(text)}
	lines := strings.Split(string(text), "\n")
	section, last := "", ""
	for i := 0; i < len(lines); i++ {
		if title, ok := strings.CutPrefix(lines[i], "## "); ok {
			section, last = title, ""
			b.anchors[anchor(title)] = true
		}
		m := fence.FindStringSubmatch(lines[i])
		if m == nil {
			continue
		}
		var body []string
		begin := i + 1
		for i++; i < len(lines) && lines[i] != "```"; i++ {
			body = append(body, lines[i])
		}
		require.Less(t, i, len(lines), "the block at line %d does not end", begin)
		symptom, retry := "", false
		for _, word := range strings.Fields(m[2]) {
			if name, ok := strings.CutPrefix(word, "runbook="); ok {
				symptom = name
			}
			retry = retry || word == "retry"
		}
		switch {
		case m[1] == "sh" && symptom == "prelude":
			b.prelude = strings.Join(body, "\n")
		case m[1] == "sh" && symptom == "":
			b.others = append(b.others, section+"/"+strings.Fields(body[0])[0])
		case m[1] == "sh":
			if known, ok := b.sections[symptom]; ok {
				require.Equal(t, known, section, "runbook=%s is used in two sections", symptom)
			}
			b.sections[symptom], last = section, symptom
			b.steps[symptom] = append(b.steps[symptom], step{script: strings.Join(body, "\n"), retry: retry, line: begin})
		case m[2] == "outcome":
			require.NotEmpty(t, last, "the outcome at line %d follows no block", begin)
			s := &b.steps[last][len(b.steps[last])-1]
			for _, expression := range body {
				s.outcome = append(s.outcome, regexp.MustCompile(expression))
			}
		}
	}
	return b
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

// operator runs blocks as somebody does who has a shell and the document.
type operator struct {
	dep     *servicetest.Deployment
	prelude string
	path    string
}

func newOperator(t *testing.T, dep *servicetest.Deployment, prelude string) *operator {
	t.Helper()
	for _, name := range []string{"bash", "redis-cli", "psql"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED: %s is not installed, so the commands of OPERATIONS.md were not run", name)
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
		return fmt.Errorf("the block at line %d: %w, and says\n%s", s.line, err, out)
	}
	flat := spaces.ReplaceAllString(out, " ")
	for _, want := range s.outcome {
		if !want.MatchString(out) && !want.MatchString(flat) {
			return fmt.Errorf("the block at line %d does not show %q but\n%s", s.line, want, out)
		}
	}
	return nil
}

// patience is how long a block that says retry may take to show its outcome.
const patience = 40 * time.Second

func TestTheRunbookDoesWhatItSays(t *testing.T) {
	b := readBook(t)
	require.NotEmpty(t, b.prelude)
	for _, other := range b.others {
		require.Contains(t, notExecuted, other, "a block of commands that is not executed needs a reason here, or runbook=NAME")
	}
	require.Equal(t, slices.Sorted(maps.Keys(stages)), slices.Sorted(maps.Keys(b.steps)), "each symptom of the document is staged, and the other way round")
	for _, symptom := range slices.Sorted(maps.Keys(b.steps)) {
		t.Run(symptom, func(t *testing.T) {
			dep := servicetest.New(t)
			st := stages[symptom](dep)
			op := newOperator(t, dep, b.prelude)
			var took []time.Duration
			for i, s := range b.steps[symptom] {
				if st.before[i] != nil {
					st.before[i]()
				}
				began := time.Now()
				deadline := began.Add(patience)
				err := s.judge(op.run(st.settings, s))
				for err != nil && s.retry && time.Now().Before(deadline) {
					err = s.judge(op.run(st.settings, s))
				}
				require.NoError(t, err, "section %q", b.sections[symptom])
				took = append(took, time.Since(began).Round(time.Millisecond))
			}
			if st.after != nil {
				st.after()
			}
			t.Logf("executed: %s, blocks took %v", b.sections[symptom], took)
		})
	}
}

// Links inside the document lead somewhere.
func TestTheRunbooksLinksLead(t *testing.T) {
	b := readBook(t)
	text, err := os.ReadFile(runbook)
	require.NoError(t, err)
	found := regexp.MustCompile(`\]\(#([^)]*)\)`).FindAllStringSubmatch(string(text), -1)
	require.Greater(t, len(found), 20)
	for _, m := range found {
		require.True(t, b.anchors[m[1]], "#%s leads nowhere", m[1])
	}
}

func portOf(t *testing.T, p *servicetest.Process) string {
	t.Helper()
	_, port, err := net.SplitHostPort(p.Addr())
	require.NoError(t, err)
	return "METRICS_PORT=" + port
}
