package store

import (
	"fmt"
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

// PassOver has a verification pass over all versions of a fence, as over those that only
// it takes to be invalid.
func (d *Devices) PassOver(fence string) {
	d.draw = func(fences []recheck.Fence, rules recheck.Rules) (*recheck.Deriver, []recheck.Passed) {
		var odd []recheck.Passed
		fences = slices.DeleteFunc(fences, func(f recheck.Fence) bool {
			if f.ID == fence {
				odd = append(odd, recheck.Passed{FenceID: fence, Err: fmt.Errorf("fence %s version %d is odd", fence, f.Version)})
			}
			return f.ID == fence
		})
		drawn, passed := recheck.New(fences, rules)
		return drawn, append(passed, odd...)
	}
}
