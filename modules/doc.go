// Package modules wires the service: besides cmd it is the only place that knows
// fx. Each area has one file, whose providers call one
// constructor each; app.go has the one list of invokes. What exists once for each
// stream is private to a module of that stream, see parts.go; the invokes loop over
// the parts.
//
// That list is the start order, and its reverse is the stop order:
//
//	httpserver   serves /healthz and /metrics from the start to the end
//	redis        waits for Redis, rejects one that is too old
//	postgres     waits for Postgres, migrates or verifies the schema
//	announce     one log line: source, destination, backlog
//	membership   joins the fleet; on stop it releases the shards and leaves
//	pipeline     reads and commits; on stop it drains
//	watchdog     ends a stuck instance
//	election     competes for leadership; on stop it resigns
//	readiness    from here on /readyz can report ready; on stop it reports draining
//	             and announces that this member is leaving
//
// Promises kept here:
//
//   - P1, at shutdown: what is in flight is committed and acknowledged within
//     DRAIN_TIMEOUT, or stays on its queue for the next owner.
//   - P8: shards are released as soon as they are drained, before connections
//     are closed.
//
// Every step of the stop has a budget, and their sum fits into SHUTDOWN_TIMEOUT,
// because fx skips the remaining hooks when its deadline passes. config checks the sum, in
// which DRAIN_TIMEOUT is what counts: where servers answer, the others take moments, and while
// they do not, a resignation may take a second for each of its four steps.
//
// [Service.Run] returns an error whose ExitCode is the documented exit code of
// the process.
package modules
