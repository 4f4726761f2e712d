package store

// Scope is one group of one stream. It separates our rows, so that several
// fleets may share a database.
type Scope struct {
	Stream string
	Group  string
}
