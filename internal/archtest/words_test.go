package archtest_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"
)

// wordList is the data of the check, beside it.
const wordList = "retired_words.txt"

// retired is a word that must not come back.
type retired struct {
	word     string
	anywhere bool // in comments and messages too, not only as part of a name
	instead  string
	enforced bool
}

func parseWords(text string) ([]retired, error) {
	var words []retired
	enforced := true
	for n, line := range strings.Split(text, "\n") {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0 || strings.HasPrefix(line, "#"):
		case fields[0] == "---":
			enforced = false
		case len(fields) < 3 || fields[1] != "name" && fields[1] != "text":
			return nil, fmt.Errorf("%s:%d: want word, scope (name or text), replacement; have %q", wordList, n+1, line)
		default:
			words = append(words, retired{
				word: fields[0], anywhere: fields[1] == "text", instead: strings.Join(fields[2:], " "), enforced: enforced,
			})
		}
	}
	return words, nil
}

var (
	part = regexp.MustCompile(`[A-Z]+(?:[a-z]+|\b|_|$)|[a-z]+|[A-Z][a-z]+`)
	// In text that is no Go: what is spelled like a name, not like prose.
	spelledAsName = regexp.MustCompile(`[A-Za-z0-9]+(?:[_:][A-Za-z0-9]+)+|[A-Z]?[a-z]+(?:[A-Z][a-z]*)+`)
	identifier    = regexp.MustCompile(`[A-Za-z_][A-Za-z0-9_]*`)
	oneToken      = regexp.MustCompile(`^[A-Za-z0-9_:./{}%-]+$`)
	sqlComment    = regexp.MustCompile(`--[^\n]*`)
)

// wordsOf splits a name: shardTable, shard_table, SHARD-TABLE, URLTable.
func wordsOf(name string) []string {
	if known, ok := split.Load(name); ok {
		return known.([]string)
	}
	var words []string
	for _, p := range part.FindAllString(splitAcronyms.ReplaceAllString(name, "${1}_${2}"), -1) {
		words = append(words, strings.ToLower(strings.Trim(p, "_")))
	}
	split.Store(name, words)
	return words
}

// split has the words of the names that were seen: most are in many files.
var split sync.Map

var splitAcronyms = regexp.MustCompile(`([A-Z])([A-Z][a-z])`)

// namesIn returns the names that a file uses, with the line of each.
func namesIn(file, text string) ([]string, error) {
	names := []string{path.Base(file)}
	switch path.Ext(file) {
	case ".go":
		parsed, err := parser.ParseFile(token.NewFileSet(), file, text, 0)
		if err != nil {
			return nil, err
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.Ident:
				names = append(names, n.Name)
			case *ast.BasicLit:
				if s, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
					if oneToken.MatchString(s) {
						names = append(names, s)
					} else {
						names = append(names, spelledAsName.FindAllString(s, -1)...)
					}
				}
			}
			return true
		})
	case ".sql", ".lua":
		names = append(names, identifier.FindAllString(sqlComment.ReplaceAllString(text, ""), -1)...)
	default:
		names = append(names, spelledAsName.FindAllString(text, -1)...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// offences lists where a file uses retired words, by word.
func offences(words []retired, file, text string) (map[string][]string, error) {
	names, err := namesIn(file, text)
	if err != nil {
		return nil, err
	}
	users := map[string][]string{} // names by the words in them
	for _, name := range names {
		for _, word := range wordsOf(name) {
			users[word] = append(users[word], name)
		}
	}
	lines := map[string][]int{} // on which a word stands by itself
	for n, line := range strings.Split(text, "\n") {
		for _, word := range strings.FieldsFunc(strings.ToLower(line), endsWord) {
			if list := lines[word]; len(list) == 0 || list[len(list)-1] != n+1 {
				lines[word] = append(list, n+1)
			}
		}
	}
	found := map[string][]string{}
	for _, w := range words {
		for _, name := range slices.Compact(users[w.word]) {
			found[w.word] = append(found[w.word], fmt.Sprintf("%s: %s: %q is retired, say %s", file, name, w.word, w.instead))
		}
		if !w.anywhere {
			continue
		}
		for _, n := range lines[w.word] {
			found[w.word] = append(found[w.word], fmt.Sprintf("%s:%d: %q is retired, say %s", file, n, w.word, w.instead))
		}
	}
	return found, nil
}

// endsWord reports whether a character is no part of a word.
func endsWord(c rune) bool {
	return c != '_' && !unicode.IsLetter(c) && !unicode.IsDigit(c)
}

func count(found map[string][]string) int {
	n := 0
	for _, list := range found {
		n += len(list)
	}
	return n
}

func TestNoRetiredWordComesBack(t *testing.T) {
	t.Parallel()
	list, err := os.ReadFile(wordList)
	require.NoError(t, err)
	words, err := parseWords(string(list))
	require.NoError(t, err)
	require.NotEmpty(t, words)
	var found []string
	waiting := map[string]int{} // of each word that is not enforced: files that use it
	for _, w := range words {
		if !w.enforced {
			waiting[w.word] = 0
		}
	}
	files := 0
	root := filepath.Join("..", "..")
	require.NoError(t, filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if rel != "." && strings.HasPrefix(entry.Name(), ".") || slices.Contains([]string{"testdata", "bin", "docs"}, entry.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		if !slices.Contains([]string{".go", ".sql", ".lua", ".sh", ".yml", ".yaml", ".json"}, path.Ext(name)) && entry.Name() != "Makefile" {
			return nil
		}
		if entry.Name() == "words_test.go" { // its cases are retired words
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		files++
		hits, err := offences(words, filepath.ToSlash(rel), string(text))
		if err != nil {
			return err
		}
		for _, w := range words {
			if w.enforced {
				found = append(found, hits[w.word]...)
			} else if len(hits[w.word]) > 0 {
				waiting[w.word]++
			}
		}
		return nil
	}))
	require.Greater(t, files, 200)
	require.Empty(t, found, "see docs/glossary.md")
	for word, n := range waiting {
		if n == 0 {
			t.Logf("%s is gone: move it above the marker", word)
		} else {
			t.Logf("%s is still in %d files", word, n)
		}
	}
}

func TestRetiredWordsAreFoundInNamesOnly(t *testing.T) {
	t.Parallel()
	words, err := parseWords("# comment\nbell name notification\nruin text fall\n--- later ---\ngone name x y\n")
	require.NoError(t, err)
	require.Len(t, words, 3)
	require.False(t, words[2].enforced)
	require.Equal(t, "x y", words[2].instead)
	for text, want := range map[string]int{
		"package a\n// a bell rings\n":            0,
		"package a\nvar bellTower int\n":          1,
		"package a\nvar theBELL, URLBell int\n":   2,
		"package a\nvar labelled, bells int\n":    0,
		"package a\nconst a = `bell_total`\n":     1,
		"package a\nconst a = `a bell rings`\n":   0,
		"package a\nconst a = `select bell_id`\n": 1,
		"package a\n// it is a ruin\n":            1,
		"package a\nvar ruin int\n":               2,
	} {
		found, err := offences(words, "x/a.go", text)
		require.NoError(t, err)
		require.Equal(t, want, count(found), text)
	}
	for file, want := range map[string]int{"bell_test.go": 1, "BELL.sql": 1} {
		found, err := offences(words, file, "package a\n")
		require.NoError(t, err)
		require.Equal(t, want, count(found), file)
	}
	for text, want := range map[string]int{"select bell from a -- no bell": 1, "-- bell": 0} {
		found, err := offences(words, "a.sql", text)
		require.NoError(t, err)
		require.Equal(t, want, count(found), text)
	}
	found, err := offences(words, "a.yml", "summary: a bell\nexpr: sum(processor_bell_total) + BELL_TTL + processor:bell:max\n")
	require.NoError(t, err)
	require.Equal(t, 3, count(found))
	_, err = parseWords("word nowhere x")
	require.ErrorContains(t, err, "retired_words.txt:1")
}

func TestRetiredWordsSplitNames(t *testing.T) {
	t.Parallel()
	for name, want := range map[string][]string{
		"shardTable":        {"shard", "table"},
		"URLTable2":         {"url", "table"},
		"SHARD_TABLE":       {"shard", "table"},
		"shard-table.go":    {"shard", "table", "go"},
		"processor:lag:max": {"processor", "lag", "max"},
		"A":                 {"a"},
		"parseJSON":         {"parse", "json"},
	} {
		require.Equal(t, want, wordsOf(name), name)
	}
}
