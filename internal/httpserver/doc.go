// Package httpserver is the HTTP endpoint of an instance: liveness, readiness,
// metrics and profiles.
//
// What it promises:
//
//  1. It changes nothing: every route answers GET and HEAD only. Operators'
//     changes go through the database, where they leave an audit row.
//  2. /readyz says ready only when every expected check has registered and has
//     answered without an error within the last second or now, and the service
//     is not draining. Otherwise it says 503 and names what is not ready.
//  3. A check that hangs holds up nobody: the answer comes after CheckTimeout,
//     and no second run of that check begins while one is under way.
//  4. Profiles are served to clients on the same machine only, unless the
//     configuration opens them.
//
// /healthz says only that the process answers. It does not look at
// dependencies on purpose: restarting does not fix another member's outage.
//
// The service listens before its dependencies are up and closes last, so that
// a start that hangs and a drain that takes its time can both be watched.
package httpserver
