package protocol

// HotDevice is a device that costs its instance more than HotShare of its work, so that the
// other devices of its worker may wait for it. Its shard cannot be divided.
type HotDevice struct {
	Device string  `json:"device"`
	Shard  int     `json:"shard"`
	Share  float64 `json:"share"` // of the records of its instance, or of the time its commits take if that is more
	Rate   float64 `json:"rate"`  // records per second
}

const (
	// HotShare is the share above which a device is hot, as fair queues have it. So there are
	// fewer than ten of them for records, and for time.
	HotShare = 0.1
	// HotFloor is how many records per second an instance stores at least before a share
	// of them matters.
	HotFloor = loadFloor
)
