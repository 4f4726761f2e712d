package main

import "errors"

// The exit codes of every command.
const (
	exitClean      = 0
	exitFinding    = 1 // drain budget exceeded; of other commands a finding or any other error
	exitCrash      = 2 // Go's own code for a panic, or a component that ended unexpectedly
	exitConfig     = 3 // bad configuration or command line
	exitDependency = 4 // Redis or Postgres was not available in time
	exitSchema     = 5 // wrong schema or protocol
	exitIdentity   = 6 // another instance has this identity
)

// exitError is an error with the exit code of the process.
type exitError struct {
	code int
	err  error // nil if everything has been printed already
}

// exit gives err an exit code. A nil err ends the command with the code, without
// a message.
func exit(code int, err error) error { return &exitError{code: code, err: err} }

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }
func (e *exitError) ExitCode() int { return e.code }

// exitCode returns the exit code of a command that returned err.
func exitCode(err error) int {
	if err == nil {
		return exitClean
	}
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	return exitFinding
}
