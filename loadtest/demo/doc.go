// Package demo is the service shown at work: servers of its own, a fleet fed
// into the stream, live progress, and an account at the end that is judged from
// the send log and compared with Postgres field by field.
//
// What it promises:
//
//  1. It never touches a server in use: servers are started for it, or are
//     named for it and refused unless they are empty.
//  2. The account is judged by loadtest/oracle from what was sent, and knows
//     nothing of how the service works.
//  3. Waiting ends: when the service makes no progress for a minute, what is
//     left is in the account as pending.
//
// The service itself is started by the caller of this package (loadtest demo),
// and observed from outside: through Redis, Postgres and its metrics.
package demo
