package modules

import (
	"errors"
	"fmt"
)

// The exit codes of the service.
const (
	codeDrain      = 1 // the drain's budget ran out
	codeUnexpected = 2 // a component ended although nobody asked it to
	codeConfig     = 3
	codeDependency = 4 // Redis or Postgres never came up
	codeSchema     = 5
)

// ExitError is an error that says with which code the process should exit.
type ExitError struct {
	Code int
	Err  error
}

// Error is the message of the cause.
func (e *ExitError) Error() string { return e.Err.Error() }

// Unwrap is the cause.
func (e *ExitError) Unwrap() error { return e.Err }

// ExitCode is the code for the process.
func (e *ExitError) ExitCode() int { return e.Code }

// exitError gives an error a code.
func exitError(code int, format string, args ...any) error {
	return &ExitError{Code: code, Err: fmt.Errorf(format, args...)}
}

// coded is err itself when it, or what it wraps, knows its code, without what
// fx and dig wrapped around; otherwise err with the given code.
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
