package pipeline

// Vitals is how the work stands, as a heartbeat reports it.
type Vitals struct {
	InHand   int    // entries in memory and not finished
	Finished uint64 // entries finished since the start: it moves while there is progress
	Tried    uint64 // calls of servers that came back, well or not: it moves while workers are not stuck
	Shards   []int  // held, ascending
}

// Vitals tells how the work stands.
func (p *Pipeline) Vitals() Vitals {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	v := Vitals{InHand: p.table.records, Finished: p.table.finished}
	for _, w := range p.workers {
		v.Tried += w.tried.Load()
	}
	for shard := range p.table.slots {
		if p.table.slots[shard].held {
			v.Shards = append(v.Shards, shard)
		}
	}
	return v
}
