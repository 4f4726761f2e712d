// Package archtest checks the rules of the house that a reader must be able to
// rely on, over every file of the module, whatever its build tags. The linter
// checks imports file by file and more; these tests also follow imports through
// our own packages, which no linter does, and run wherever the tests run.
//
//  1. fx is imported in modules and cmd only, by tests too.
//  2. Redis and Postgres are spoken to in their adapters only, in the wiring,
//     in what starts servers, and in two named files of coordination.
//  3. No driver reaches the domain, the pipeline or the HTTP server through another
//     package of ours.
//  4. testenv is imported by tests only.
//  5. Words that were retired (retired_words.txt) do not come back as names.
//  6. cmd/processor links no load test, simulation or launcher of servers.
package archtest
