// Package httpserver is the HTTP endpoint of an instance: liveness, readiness,
// metrics and profiles.
//
// Promises:
//
//  1. Its own routes change nothing: they accept GET and HEAD only. What is mounted
//     answers for itself (package console).
//  2. /readyz reports ready only if every expected check has registered and has
//     succeeded within the last second or now, and the service is not draining.
//     Otherwise it returns 503 and names what is not ready.
//  3. A check that hangs delays no request: the response comes after CheckTimeout,
//     and a check never runs twice at a time.
//  4. Profiles are served only if the configuration says so, whatever address the
//     client seems to have.
//  5. Clients that hold connections cost a bounded number of them, and keep no
//     other client out: whether they send nothing, half a request or no body, or do
//     not read.
//
// /healthz reports only that the process responds. It does not check dependencies
// on purpose: a restart does not fix another service's outage.
//
// The server listens before its dependencies are up and closes last, so that a
// slow start and a slow drain can both be observed.
package httpserver
