package protocol

// HandOvers returns how many shards of a fleet may wait for a release at once while
// shards move by plan (a deploy, balance, a drain): 3 %, rounded up. The devices of
// all others are served meanwhile.
func HandOvers(shards int) int { return (3*shards + 99) / 100 }

// Pace returns what may be assigned now on the way to target, who should own each
// shard. A shard is taken from a willing owner, one that works and releases, only while
// fewer than HandOvers wait for such a release; those that are late, since they have waited
// for long or cannot be assigned for now, take no place, so that a locked row stops no deploy. A shard that nobody serves, or
// whose owner is not willing, is assigned immediately: waiting would help nobody.
func Pace(shards []ShardRecord, target []string, willing func(member string) bool, late func(shard int) bool) []string {
	left := HandOvers(len(shards))
	for i, s := range shards {
		if s.Owner != "" && s.Owner != s.Assigned && willing(s.Owner) && !late(i) {
			left--
		}
	}
	next := make([]string, len(shards))
	for i, s := range shards {
		next[i] = target[i]
		if target[i] == s.Assigned || s.Owner == "" || s.Owner != s.Assigned || !willing(s.Owner) || late(i) {
			continue
		}
		if left--; left < 0 {
			next[i] = s.Assigned
		}
	}
	return next
}
