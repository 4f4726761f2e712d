package protocol

import "time"

// TimingPosition is a position in the feed of changes of crossings.
type TimingPosition struct {
	Tx int64
	ID int64     // of the change read last; 0 is before all changes of Tx
	At time.Time // when that change was made, or where ID is 0 when the position was
}

// TimingChange is a change of a crossing, at its position.
type TimingChange struct {
	TimingPosition
	Device   string
	Number   int64 // among the changes of the device, from 1; 0 for an erasure or a restart
	Change   string
	Crossing string // JSON, "" when it went
	Old      string // JSON, "" when it came
}

// TimingRestart is the change that says that others may be missing before it.
const TimingRestart = "restart"
