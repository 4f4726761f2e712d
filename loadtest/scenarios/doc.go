// Package scenarios is what happens to a fleet, and what must be true then.
//
// Each file is one scenario: its plan, its bounds in words, and what it does. Run
// opens a testbed, starts instances and a load, lets the scenario break things,
// waits until everything is done and judges (verdict.go). A bound that is missed is
// named in the Result; an error means that there is no verdict.
package scenarios
