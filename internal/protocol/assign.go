package protocol

import (
	"cmp"
	"slices"
)

// Assign decides who should own each shard: current is the member each shard is
// assigned to now, "" for none; members are those that may own shards. The
// result is balanced to within one shard, keeps every assignment that balance
// allows, and is the same on every member. Without members nothing changes: a
// member that is assigned a shard may come back.
func Assign(current, members []string) []string {
	next := slices.Clone(current)
	if len(members) == 0 {
		return next
	}
	count := make(map[string]int, len(members))
	for _, m := range members {
		count[m] = 0
	}
	for _, m := range current {
		if _, ok := count[m]; ok {
			count[m]++
		}
	}
	// Members with the most shards get the larger quota, so that fewer shards
	// move.
	order := slices.Clone(members)
	slices.SortFunc(order, func(a, b string) int {
		return cmp.Or(cmp.Compare(count[b], count[a]), cmp.Compare(a, b))
	})
	order = slices.Compact(order)
	quota := make(map[string]int, len(order))
	for i, m := range order {
		quota[m] = len(current) / len(order)
		if i < len(current)%len(order) {
			quota[m]++
		}
	}
	var free []int
	for shard, m := range next {
		if quota[m] > 0 {
			quota[m]--
			continue
		}
		free = append(free, shard)
	}
	for _, m := range order {
		for ; quota[m] > 0; quota[m]-- {
			next[free[0]] = m
			free = free[1:]
		}
	}
	return next
}
