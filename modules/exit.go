package modules

import (
	"errors"
	"fmt"
)

// The exit codes of the service.
const (
	codeDrain      = 1 // the drain exceeded its budget
	codeUnexpected = 2 // a component ended unexpectedly
	codeConfig     = 3
	codeDependency = 4 // Redis or Postgres did not become available
	codeSchema     = 5
)

// ExitError is an error with the exit code of the process.
type ExitError struct {
	Code int
	Err  error
}

// Error returns the message of the cause.
func (e *ExitError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *ExitError) Unwrap() error { return e.Err }

// ExitCode returns the exit code of the process.
func (e *ExitError) ExitCode() int { return e.Code }

// exitError returns an error with an exit code.
func exitError(code int, format string, args ...any) error {
	return &ExitError{Code: code, Err: fmt.Errorf(format, args...)}
}

// coded returns err itself if it or an error it wraps has an exit code, without
// the layers of fx and dig around it; otherwise err with the given code.
func coded(code int, err error) error {
	if err == nil {
		return nil
	}
	var own *ExitError
	if errors.As(err, &own) {
		return own
	}
	var known exitCoder
	if errors.As(err, &known) {
		return err
	}
	return &ExitError{Code: code, Err: err}
}
