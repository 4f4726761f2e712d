// Package fencelog is the history of a fleet's fenced registers: who took one, under
// which fencing token, and what was done under it, with the time before and after each
// operation. A judge that knows nothing of the protocol can tell from it whether
// anything was done under a token that was no longer the newest.
//
// Only a build of the service with the tag mutant writes it, one file a process, into
// the folder that HISTORY_DIR names. An operation without a known outcome is no part of
// it: nothing is done under a token that a member does not know to have.
package fencelog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Env is the variable that names the folder.
const Env = "HISTORY_DIR"

// The kinds of operations.
const (
	Take = "take" // the register has this token now
	Use  = "use"  // something was done under the token
	Give = "give" // nobody has the register now, unless it was taken since
)

// Op is one operation that succeeded.
type Op struct {
	Register string `json:"register"` // for example epoch/12; in a file it ends with its stream
	Kind     string `json:"kind"`
	Token    string `json:"token"`
	// Number is the token as a number that grows with each taking; 0 for a random token.
	Number int64  `json:"number,omitempty"`
	By     string `json:"by"`
	Call   int64  `json:"call"` // Unix nanoseconds; the clock is that of the machine
	Return int64  `json:"return"`
}

// Recorder writes the operations of one process on one stream. A nil Recorder writes nothing.
type Recorder struct {
	by, stream string

	mu   sync.Mutex
	file *os.File
}

// Open returns a recorder of a member in a folder. Those of several streams share a file, to
// which each appends whole lines.
func Open(dir, member, stream string) (*Recorder, error) {
	file, err := os.OpenFile(filepath.Join(dir, member+".jsonl"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("record a history: %w", err)
	}
	return &Recorder{by: member, stream: stream, file: file}, nil
}

// Done writes operations that began at a time and have just succeeded. They are in the
// file before anything is done that rests on them.
func (r *Recorder) Done(began time.Time, ops ...Op) {
	if r == nil || len(ops) == 0 {
		return
	}
	var lines bytes.Buffer
	enc, now := json.NewEncoder(&lines), time.Now().UnixNano()
	for _, o := range ops {
		o.Register += " of " + r.stream
		o.By, o.Call, o.Return = r.by, began.UnixNano(), now
		if enc.Encode(o) != nil {
			return
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, _ = r.file.Write(lines.Bytes())
}

// Read returns the operations of all processes that wrote to a folder. A line that a
// killed process has left half written is skipped.
func Read(dir string) ([]Op, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		return nil, fmt.Errorf("read a history: %w", err)
	}
	var ops []Op
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read a history: %w", err)
		}
		for line := range bytes.Lines(text) {
			var o Op
			if json.Unmarshal(line, &o) == nil {
				ops = append(ops, o)
			}
		}
	}
	return ops, nil
}
