//go:build stamped

package cli

// stamp is not needed: the build script has set version, revision and revisionTime.
const stamp = ""
