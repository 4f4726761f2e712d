package store

import (
	"errors"
	"slices"

	"github.com/trmtracking/processor/internal/recheck"
)

// SetHeldLimit sets how many fixes one step reads of a device for borders that are held
// still.
func (q *Requests) SetHeldLimit(n int) { q.heldLimit = n }

// What a leader reads of moves.
const (
	ArrivedSQL     = arrivedSQL
	ExpireMovesSQL = expireMovesSQL
)

// InSlicesOf has positions read so many at a time.
func (w TrialWindow) InSlicesOf(rows int) TrialWindow {
	w.rows = rows
	return w
}

// VerifyAtMost bounds the positions of a verification.
func (d *Devices) VerifyAtMost(n int) { d.verifyMost = n }

// PassOver has a verification pass over a fence, as over one that only it takes to be invalid.
func (d *Devices) PassOver(fence string) {
	d.draw = func(fences []recheck.Fence, rules recheck.Rules) (*recheck.Deriver, []recheck.Passed) {
		drawn, passed := recheck.New(slices.DeleteFunc(fences, func(f recheck.Fence) bool { return f.ID == fence }), rules)
		return drawn, append(passed, recheck.Passed{FenceID: fence, Err: errors.New("fence " + fence + " is odd")})
	}
}
