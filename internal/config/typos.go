package config

import (
	"fmt"
	"slices"
	"strings"
)

// LikelyTypos reports the variables of an environment that look like a
// misspelling of ours, one sentence each. A misspelt variable silently leaves the
// default in force.
func LikelyTypos(environ []string) []string {
	var ours []string
	for _, v := range Variables() {
		ours = append(ours, v.Name)
		if v.Secret {
			ours = append(ours, v.Name+fileSuffix)
		}
	}
	var found []string
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if slices.Contains(ours, name) {
			continue
		}
		for _, own := range ours {
			if distance(strings.ToUpper(name), own) <= tolerance(own) {
				found = append(found, fmt.Sprintf("%s is set but is not a known variable; did you mean %s?", name, own))
				break
			}
		}
	}
	slices.Sort(found)
	return found
}

// tolerance returns the maximum distance of a misspelling, smaller for short names.
func tolerance(name string) int {
	if len(name) < 8 {
		return 1
	}
	return 2
}

// distance returns the number of insertions, deletions and replacements that turn a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
