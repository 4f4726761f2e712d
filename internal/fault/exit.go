// Package fault says in what way a program failed: the exit code of the
// process, and words for a server that is away or refuses.
package fault

import (
	"errors"
	"fmt"
)

// The exit codes of the service and of every command; docs/reference/exit-codes.md.
const (
	Clean      = 0
	Finding    = 1 // of the service: the drain exceeded its budget; of other commands a finding or any other error
	Unexpected = 2 // Go's own code for a panic, or a component that ended unexpectedly
	Config     = 3 // bad configuration or command line
	Dependency = 4 // Redis or Postgres was not available in time
	Schema     = 5 // wrong schema or protocol
	Identity   = 6 // another instance has this identity
)

// Error is an error with the exit code of the process.
type Error struct {
	Code int
	Err  error // nil if everything has been printed already
}

// Exit returns err with an exit code. A nil err ends the process with the code
// and without a message.
func Exit(code int, err error) error { return &Error{Code: code, Err: err} }

// Exitf returns an error with an exit code.
func Exitf(code int, format string, args ...any) error {
	return &Error{Code: code, Err: fmt.Errorf(format, args...)}
}

// Error returns the message of the cause, "" without one.
func (e *Error) Error() string {
	if e.Err == nil {
		return ""
	}
	return e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ExitCode returns the exit code of the process.
func (e *Error) ExitCode() int { return e.Code }

// coded is an error with an exit code, of whatever package.
type coded interface{ ExitCode() int }

// ExitCode returns the exit code of a process that ends with err.
func ExitCode(err error) int {
	if err == nil {
		return Clean
	}
	var own coded
	if errors.As(err, &own) {
		return own.ExitCode()
	}
	return Finding
}

// Coded returns err itself if it or an error it wraps has an exit code, without
// the layers of fx and dig around it; otherwise err with the given code.
func Coded(code int, err error) error {
	if err == nil {
		return nil
	}
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	var known coded
	if errors.As(err, &known) {
		return err
	}
	return &Error{Code: code, Err: err}
}
