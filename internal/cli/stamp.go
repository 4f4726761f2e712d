//go:build !stamped

package cli

import _ "embed"

// stamp has what git archive puts in: a source tarball is no clone, but knows its
// version, commit and time. In a clone it holds the placeholders.
//
//go:embed stamp.txt
var stamp string
