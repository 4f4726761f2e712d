// Package servicetest runs the processor as processes of its own, race detector
// included, each with a stream and a database of the test's. A package of tests
// calls Main in its TestMain.
package servicetest
