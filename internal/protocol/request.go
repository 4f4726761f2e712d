package protocol

// Kinds of requests.
const (
	RequestRehydrate = "rehydrate" // load the state of a device again
	RequestRecompute = "recompute" // derive crossings in a window again
	RequestErase     = "erase"     // remove the data of a device
)

// Request is work requested by operators and other services. The owner of the
// shard does it, in the shard's worker and under its epoch, in bounded steps.
type Request struct {
	ID       int64
	Kind     string
	Shard    int
	Device   string // "" for all devices of the shard
	FromUS   int64  // window of device time, both ends inclusive; math.MinInt64 if open
	ToUS     int64  // math.MaxInt64 if open
	Progress Progress
	Attempts int // failed since it last made progress
}

// Progress is how far a request has come; a new owner continues from there.
type Progress struct {
	Device  string `json:"device,omitempty"`   // being processed, or finished up to it
	AfterUS *int64 `json:"after_us,omitempty"` // of that device, finished up to this device time
	Devices int64  `json:"devices"`
	Fixes   int64  `json:"fixes"`
	Added   int64  `json:"added"`
	Changed int64  `json:"changed"`
	Removed int64  `json:"removed"`
	// Halved is how often a step was halved, since a larger one took too long.
	Halved int `json:"halved,omitempty"`
}

// RequestStep is the input of one step of a request.
type RequestStep struct {
	Request Request
	Lease   ShardLease
	Rules   Rules
	Shards  int
}

// Window is a request of another service to recompute the crossings of a
// device.
type Window struct {
	Source   string // identifies the request, so that recording it again changes nothing
	DeviceID string
	Shard    int
	FromUS   int64 // device time, both ends inclusive
	ToUS     int64
	Reason   string
}

// FenceSyncResult is the outcome of copying a platform's fences.
type FenceSyncResult struct {
	Added, Closed int     // versions
	Bad           []error // rows that are invalid and skipped, each named
}
