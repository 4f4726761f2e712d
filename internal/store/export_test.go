package store

// SetHeldLimit sets how many fixes one step reads of a device for borders that are held
// still.
func (q *Requests) SetHeldLimit(n int) { q.heldLimit = n }

// InSlicesOf has positions read so many at a time.
func (w TrialWindow) InSlicesOf(rows int) TrialWindow {
	w.rows = rows
	return w
}
