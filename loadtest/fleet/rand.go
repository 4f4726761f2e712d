package fleet

// The purposes for which random numbers are drawn. Each has its own, so that
// changing one share of a profile leaves the rest of the run as it was.
const (
	saltGrid uint64 = iota + 1
	saltSlow
	saltPlan
	saltPlace
	saltShape
	saltStop
	saltPace
	saltRecord
	saltJunk
	saltCourse
)

// hash mixes its arguments into 64 random bits (the finaliser of SplitMix64).
func hash(seed, a, b, salt uint64) uint64 {
	x := mix(seed + salt*0x9e3779b97f4a7c15)
	x = mix(x ^ (a + 0x9e3779b97f4a7c15))
	return mix(x ^ (b + 0xd1b54a32d192ed03))
}

func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// uniform turns random bits into a number from 0 up to, not including, 1.
func uniform(bits uint64) float64 { return float64(bits>>11) / (1 << 53) }

// between turns random bits into an integer from low to high.
func between(bits uint64, low, high int) int {
	return low + int(bits%uint64(high-low+1))
}
