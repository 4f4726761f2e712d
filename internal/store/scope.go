package store

// Scope is one group of one stream. Rows of ours are kept apart by it, so that
// several fleets may share a database.
type Scope struct {
	Stream string
	Group  string
}
