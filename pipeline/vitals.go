package pipeline

// Vitals is how the work stands, as a heartbeat reports it.
type Vitals struct {
	InHand   int    // entries in memory and not finished
	Finished uint64 // entries finished since the start: it moves while there is progress
	Shards   []int  // held, ascending
}

// Vitals tells how the work stands.
func (p *Pipeline) Vitals() Vitals {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	v := Vitals{InHand: p.table.records, Finished: p.table.finished}
	for shard := range p.table.slots {
		if p.table.slots[shard].held {
			v.Shards = append(v.Shards, shard)
		}
	}
	return v
}
