package telemetry

import "time"

// Classes of failures that decoding does not know.
const (
	// ClassSink is a record that Postgres refuses for a reason of the record's own.
	ClassSink Class = "sink"
	// ClassCrash is an entry on which processes died.
	ClassCrash Class = "crash"
)

// Classes are all reasons for which an entry can become a dead letter.
func Classes() []Class {
	return []Class{ClassDecode, ClassInvalid, ClassSink, ClassCrash, ClassTooLarge}
}

// DeadLetter is an entry that is given up, or would be by now, and why.
type DeadLetter struct {
	Entry       Entry // byte for byte as it was delivered
	Shard       int
	Class       Class
	Error       string
	Field       string // at fault, "" where none is
	Fingerprint string // the same for failures of the same kind
	Attempts    int    // ours; outages and drains use none
	FirstFailed time.Time
	LastFailed  time.Time
	Instance    string // that made the last attempt
	Version     string // of that instance
}
