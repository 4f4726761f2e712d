package config

import (
	"errors"
	"fmt"
	"strings"

	"github.com/trmtracking/processor/internal/cli"
)

const (
	tableBegin = "<!-- config:begin -->"
	tableEnd   = "<!-- config:end -->"
)

// ErrNoMarkers reports that a text has no place for the table of variables.
var ErrNoMarkers = errors.New("no table of variables: put " + tableBegin + " and " + tableEnd + " on lines of their own where it belongs")

// Markdown returns the table of all variables for docs/reference/configuration.md.
func Markdown() string {
	var b strings.Builder
	b.WriteString("| Variable | Default | Values | What it is |\n")
	b.WriteString("| --- | --- | --- | --- |\n")
	for _, v := range Variables() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", v.Name, cell(defaultText(v)), cell(v.Bounds), cell(helpText(v)))
	}
	return b.String()
}

// Renew returns text with the table between the markers replaced by the one of
// this version.
func Renew(text string) (string, error) {
	before, rest, found := strings.Cut(text, tableBegin)
	if !found {
		return "", ErrNoMarkers
	}
	_, after, found := strings.Cut(rest, tableEnd)
	if !found {
		return "", ErrNoMarkers
	}
	return before + tableBegin + "\n\n" + Markdown() + "\n" + tableEnd + after, nil
}

func cell(s string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", ">", "&gt;").Replace(s)
}

func defaultText(v Variable) string {
	switch {
	case v.Required:
		return "must be set"
	case v.Default == "":
		return "none"
	}
	return v.Default
}

func helpText(v Variable) string {
	if v.Secret {
		return v.Help + "; or the name of a file that holds it in " + v.Name + fileSuffix
	}
	return v.Help
}

// Help returns the list of all variables as text, at most width columns wide.
func Help(width int) string {
	var b strings.Builder
	group := ""
	for _, v := range Variables() {
		if v.Group != group && group != "" {
			b.WriteByte('\n')
		}
		group = v.Group
		fmt.Fprintf(&b, "  %s (%s)\n", v.Name, defaultText(v))
		text := helpText(v)
		if v.Bounds != "" {
			text += " [" + v.Bounds + "]"
		}
		for _, line := range cli.Wrap(text, width-6) {
			b.WriteString("      " + line + "\n")
		}
	}
	return b.String()
}
