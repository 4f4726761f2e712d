package geofence

// Kept returns how many fences are followed.
func (w *Walk) Kept() int { return len(w.holds) }
