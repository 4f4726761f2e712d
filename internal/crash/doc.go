// Package crash keeps a dump ready at all times, so that every way in which the
// process can end leaves one.
//
// A panic cannot be hooked in goroutines that are not ours, and a fatal error of
// the runtime cannot be recovered at all. So nothing that could fail is left for
// the moment of a crash: every second the header and what is in flight are
// written to the spare one of two files, and the runtime is set to write there
// too when it ends the process (debug.SetCrashOutput). A crash appends the panic
// and the stacks of all goroutines to the newest complete snapshot.
//
//	spare file: write header, snapshot, marker  ->  becomes the runtime's output
//	the other one                               ->  becomes the spare
//
// Promises:
//
//  1. A panic in any goroutine, and any fatal error of the runtime, leaves one
//     dump: version, member, settings, what is in flight, panic, all stacks.
//  2. It never prevents the exit: a folder that is missing, read-only or full costs
//     the dump and one log line, not the end of the process, whose code stays
//     Go's own 2.
//  3. Dumps do not fill the disk: header and snapshot are cut at half of
//     MaxBytes, whole dumps at MaxBytes when they are found at the next start, and
//     only the newest few are kept.
//  4. Files of living processes are left alone, in a shared folder too; those
//     of a process that was killed hold no crash and are removed.
//  5. It writes only to regular files of its own user in a folder of its own user,
//     mode 0700; a link or a pipe that lies there already is never followed or read.
//
// Panicked is for goroutines that can recover: it takes a fresh snapshot, logs
// the panic, and gives the dump its final name immediately. Any other dump is
// named and logged at the next start, by Record.
//
// The runtime's output is global to the process, so only a command calls Record.
package crash
