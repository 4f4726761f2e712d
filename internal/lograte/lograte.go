// Package lograte limits the log lines of what is tried again and again.
package lograte

import "time"

// every is the interval in which one line is passed.
const every = 10 * time.Second

// Limit passes the first line, and then one per interval. It belongs to one
// goroutine; its zero value is ready.
type Limit struct{ last time.Time }

// Pass reports whether to log now.
func (l *Limit) Pass() bool {
	now := time.Now()
	if !l.last.IsZero() && now.Sub(l.last) < every {
		return false
	}
	l.last = now
	return true
}
