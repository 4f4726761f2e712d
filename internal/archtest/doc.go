// Package archtest checks the rules that hold for every file of the module,
// whatever its build tags. The linter checks imports file by file; these tests
// also follow imports through our own packages, which no linter does, and run
// wherever the tests run.
//
//  1. fx is imported in modules and cmd only, by tests too.
//  2. Only the adapters use Redis and Postgres, apart from the wiring, the code
//     that starts servers, and two named files of coordination.
//  3. No driver reaches the domain, the pipeline or the HTTP server through another
//     package of ours.
//  4. testenv is imported by tests only.
//  5. Retired words (retired_words.txt) do not come back as names.
//  6. cmd/processor links no load test, simulation or launcher of servers.
//  7. The oracle imports what was sent and internal/recheck, and that nothing of this
//     module: what checks the service shares no code with it.
package archtest
