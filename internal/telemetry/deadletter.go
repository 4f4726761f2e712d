package telemetry

import "time"

// Classes of failures that do not come from decoding.
const (
	// ClassSink is a record that Postgres rejects because of its content.
	ClassSink Class = "sink"
	// ClassCrash is an entry on which processes crashed.
	ClassCrash Class = "crash"
)

// Classes returns all classes of dead letters.
func Classes() []Class {
	return []Class{ClassDecode, ClassInvalid, ClassSink, ClassCrash, ClassTooLarge}
}

// DeadLetter is a dead-lettered or deferred entry and the reason.
type DeadLetter struct {
	Entry       Entry // byte for byte as it was delivered
	Shard       int
	Class       Class
	Error       string
	Field       string // at fault, "" if none
	Fingerprint string // the same for failures of the same kind
	Attempts    int    // ours; outages and drains use none
	FirstFailed time.Time
	LastFailed  time.Time
	Instance    string // that made the last attempt
	Version     string // of that instance
	Unqueued    bool   // the entry was on no queue when it was given up
	Moved       bool   // the entry is among the dead letters, as those who move it note
}
