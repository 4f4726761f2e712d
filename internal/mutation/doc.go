// Package mutation breaks the service in one place after the other and expects
// a test to notice. It is a list: a line of source, what replaces it, and the
// test that must fail. Nothing is written into the tree; the compiler is given
// the changed file as an overlay.
//
// A line that is gone fails the test: the list follows the code. It is part of
// the long campaigns.
package mutation
