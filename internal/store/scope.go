package store

// Scope is one group of one stream. It separates our rows, so that several
// fleets may share a database.
type Scope struct {
	Stream string
	Group  string
}

// shardsSetting is the name of the setting that pins the number of shards.
func (s Scope) shardsSetting() string { return s.Stream + "/" + s.Group + "/SHARDS" }
