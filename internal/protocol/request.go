package protocol

// The kinds of requests.
const (
	RequestRehydrate = "rehydrate" // load the state of a device again
	RequestRecompute = "recompute" // derive crossings in a window again
	RequestErase     = "erase"     // remove the data of a device
)

// Request is work asked for by operators and neighbours. The owner of the shard
// does it, in the worker of the shard and under its epoch, in bounded steps.
type Request struct {
	ID       int64
	Kind     string
	Shard    int
	Device   string // "" for all devices of the shard
	FromUS   int64  // window of device time, both ends included; math.MinInt64 for an open beginning
	ToUS     int64  // math.MaxInt64 for an open end
	Progress Progress
}

// Progress is how far a request has come; a new owner goes on from there.
type Progress struct {
	Device  string `json:"device,omitempty"`   // at work on this one, or done up to it
	AfterUS *int64 `json:"after_us,omitempty"` // of that device, done up to this device time
	Devices int64  `json:"devices"`
	Fixes   int64  `json:"fixes"`
	Added   int64  `json:"added"`
	Changed int64  `json:"changed"`
	Removed int64  `json:"removed"`
}

// RequestStep is everything a step of a request needs to know.
type RequestStep struct {
	Request Request
	Lease   ShardLease
	Rules   Rules
	Shards  int
}

// Window is a request of a neighbour to derive the crossings of a device again.
type Window struct {
	Source   string // names the request, so that recording it again changes nothing
	DeviceID string
	Shard    int
	FromUS   int64 // device time, both ends included
	ToUS     int64
	Reason   string
}

// FenceSyncResult is what became of fences that another member keeps.
type FenceSyncResult struct {
	Added, Closed int     // versions
	Bad           []error // rows that are invalid and skipped, each named
}
