// Package modules wires the service: it is the only place, beside cmd, that
// knows fx. Each area has one fx.Module in one file, whose providers call one
// constructor each; app.go has the one list of invokes.
//
// That list is the start order, and its reverse is the stop order:
//
//	httpserver   answers /healthz and /metrics while the rest comes up, and until the end
//	postgres     waits until it answers, migrates or verifies the schema
//	redis        waits until it answers
//	announce     one log line: what is read, from where, into where
//	membership   joins the fleet; on stop it releases the shards and leaves
//	pipeline     reads and commits; on stop it drains
//	watchdog     ends an instance that is stuck
//	election     may lead; on stop it resigns
//	readiness    from here on /readyz may say ready; on stop it says draining
//	             and announces that this member is leaving
//
// Promises kept here:
//
//   - P1, at shutdown: what is in flight is committed and acknowledged within
//     DRAIN_TIMEOUT, or stays on its queue for the next owner.
//   - P8: shards are released as soon as they are drained, before connections
//     are closed.
//
// Every step of the stop has a budget of its own, and together they fit into
// SHUTDOWN_TIMEOUT, because fx skips the hooks that are left when its deadline
// passes. config checks the sum.
//
// [Service.Run] returns an error whose ExitCode is the one documented for the
// process.
package modules
