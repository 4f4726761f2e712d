// Package loadtest runs the service as its users do, with a fleet on demand and
// faults on demand, and judges what is left behind. Send and Verify do the two ends
// of that on a system that runs already.
//
//	testbed    servers, instances (processes), load, polls
//	fleet      what trackers send, open-loop, with its own log
//	scenarios  a testbed, a fleet, faults, a verdict
//	observer   what the database itself noted
//	oracle     compares every row and entry with what was sent
//	report     a result as a page
//	bench      how fast; ceiling: how fast the servers alone are
//	demo       recorded tracks, printed as they pass fences
//
// A scenario starts instances of the real program, drives the fleet, breaks things,
// waits until everything is done, and lets two judges check Postgres: the oracle,
// and the order of commits as the database itself noted it.
//
// What it promises:
//
//  1. Instances are processes started from the program that is deployed,
//     configured by its variables and nothing else.
//  2. The load does not wait for the service; how far it was behind its own plan
//     is said.
//  3. The verdict owes nothing to the service. Its metrics are shown, and used
//     for rates and latencies, never for what was stored, by whom, or in which
//     order.
//  4. A scenario has bounds; one that is missed is named.
//  5. Servers in use are safe: named servers are refused when their tables hold
//     anything, get a stream and a group of their own, nothing is broken on them
//     unless that is allowed, and they are left as they were found.
//  6. No process outlives the run.
package loadtest
