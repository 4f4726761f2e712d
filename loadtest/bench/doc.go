// Package bench measures what the servers can do without the service, and what the
// service does on them: rounds of ceiling and backlog by turns, then a steady load.
// What is slower than the targets in docs/performance.md is named.
package bench
