// Package devenv starts private Redis and Postgres servers for the demo, the
// tests and the load tests, without a container and without configuration.
//
// What it promises:
//
//  1. A server is private: own data folder, own free port on 127.0.0.1, never
//     a server that ran before. The server that answers is checked to be the
//     one that was started, so a port taken in between leads to another port.
//  2. What is measured is what one runs: Redis keeps an append-only file
//     (fsync every second, no eviction), Postgres syncs every commit.
//  3. Nothing stays behind: Close stops the servers and removes their folder;
//     so does a watchdog when this process ends without Close, by a panic,
//     Ctrl-C or SIGKILL.
//  4. As root the servers run as an unprivileged user (Postgres refuses root).
//  5. A server keeps its port and its data over Stop and Start, Kill and
//     Start, and Restart; RestartEmpty keeps the port and drops the data.
//
// How the watchdog works: a small shell process in a session of its own reads
// a pipe that only this process can write to. The end of the pipe means that
// this process is gone; then it stops what it was told of and removes the
// folder. A server is told of before it runs: its launcher, which has the
// process ID already, waits for a word from us and gives up when it reads the
// end of its input instead.
//
// It does not promise tuned servers: collation C, 256 MB of shared buffers and
// the defaults of the installed release otherwise. Options.RedisArgs and
// Options.PostgresArgs change that.
//
// Proxy makes the faults of a network between a client and any server, and
// RequireEmptyRedis and RequireEmptyPostgres keep a demo or a test away from
// servers that are in use.
//
// A Cluster is six such servers, joined: three masters with a replica each. It can
// lose a master, move a slot, and stop and start as a whole.
//
// The demo, loadtest and testenv call it. It knows nothing of the service.
package devenv
