// Package testenv gives each test its own corner of real servers. Only
// _test.go files import it.
//
// What it promises:
//
//  1. Redis gives a test names that no other test has; Postgres gives it a
//     database that no other test has, copied from a template that is built
//     once per test process. So tests run in parallel and nothing is flushed.
//  2. The servers are those that TEST_REDIS_URL and TEST_POSTGRES_URL name
//     (`make test` starts a pair for the whole run), else private ones, started
//     when the first test of the process asks. Variables of production
//     (REDIS_URL, POSTGRES_URL) are never read, and a target that holds
//     anything that is not a test's is refused.
//  3. OwnServers gives a test servers that it may stop, kill, pause or flush.
//  4. In short mode tests that ask for a server skip. A missing server program
//     skips too, except in CI (CI=true), where it fails.
//  5. A database with a template is of the world that TEST_WORLD names, of the
//     one that the test chose with InWorld, or plain: a world is what a platform
//     may have put there before us, such as a partitioned positions.
//
// A package whose tests use it should have
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
// which stops the servers, looks for leaked goroutines and removes the template
// databases. Without it the servers still go, with the watchdog of devenv.
package testenv
