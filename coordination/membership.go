package coordination

import (
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/lograte"
	"github.com/trmtracking/processor/internal/protocol"
)

//go:embed heartbeat.lua
var beatSource string

//go:embed leave.lua
var leaveSource string

//go:embed members.lua
var membersSource string

var (
	beatScript    = redis.NewScript(beatSource)
	leaveScript   = redis.NewScript(leaveSource)
	membersScript = redis.NewScript(membersSource)
)

// Member is a heartbeat: what a member reports of itself.
type Member struct {
	Instance      string               `json:"instance"`
	Incarnation   string               `json:"incarnation"`
	Number        uint64               `json:"number"`
	Version       string               `json:"version"`
	Deploy        string               `json:"deploy,omitempty"` // the same for all that one deploy starts, "" if it is not announced
	Protocol      int                  `json:"protocol"`
	Host          string               `json:"host"`
	PID           int                  `json:"pid"`
	Started       time.Time            `json:"started"`
	Leaving       bool                 `json:"leaving"`
	Left          bool                 `json:"left,omitempty"` // its last heartbeat: it ends here, and has released what it could
	SinkDown      time.Duration        `json:"sink_down_ns"`
	InFlight      int                  `json:"in_flight"`
	Progress      uint64               `json:"progress"`
	CallsReturned uint64               `json:"calls_returned"`
	Blocked       bool                 `json:"blocked,omitempty"` // its last commit met a lock of another session
	Shards        []int                `json:"shards"`
	ShardFinished []uint64             `json:"shard_finished,omitempty"` // entries of each of them since the start
	RowLocks      []protocol.RowLock   `json:"row_locks,omitempty"`      // which its shards wait for, the first ones
	Waits         []protocol.Wait      `json:"waits,omitempty"`          // what does not go on in it, the first ones
	Hot           []protocol.HotDevice `json:"hot_devices,omitempty"`    // that cost it much, the hottest first
	Database      string               `json:"database,omitempty"`       // identity of its database
	Postgres      string               `json:"postgres,omitempty"`       // and address
	Server        string               `json:"server,omitempty"`         // which Postgres server that leads to, see store.Identity
	Redis         string               `json:"redis,omitempty"`          // run_id of the server that this was sent to, see heartbeat.lua
	Refusal       *protocol.Refusal    `json:"refusal,omitempty"`        // why Postgres rejects rows that are not at fault
	Usage

	age    time.Duration // since it was written, by the clock of Redis; 0 where that is not known
	copied bool          // it was sent to another server than the one that has it, or before that was restarted
}

// Usage is what a member does and consumes, for people.
type Usage struct {
	Rate       float64 `json:"rate"`       // entries finished per second
	CPU        float64 `json:"cpu"`        // cores in use
	Memory     uint64  `json:"memory"`     // resident bytes
	Dispatches bool    `json:"dispatches"` // it holds the dispatch lease
}

// Name returns identity and incarnation, as ownership and sessions carry it. An
// identity that restarts is a new member.
func (m Member) Name() string { return m.Instance + "." + m.Incarnation }

func (m Member) beat() protocol.Beat {
	return protocol.Beat{
		Member: m.Name(), Number: m.Number, Leaving: m.Leaving, Left: m.Left,
		SinkDown: m.SinkDown, InFlight: m.InFlight, Progress: m.Progress, CallsReturned: m.CallsReturned, Blocked: m.Blocked,
		Age: m.age,
	}
}

// identityError reports that another live member uses our identity.
type identityError struct {
	Instance string
	Holder   Member
}

func (e *identityError) Error() string {
	return fmt.Sprintf("identity %s is in use by process %d on %s, started %s; give each instance its own INSTANCE_ID",
		e.Instance, e.Holder.PID, e.Holder.Host, e.Holder.Started.Format(time.RFC3339))
}

// ExitCode returns the exit status for an identity in use.
func (e *identityError) ExitCode() int { return 6 }

// Database is the database a member works with. Its identity and addresses hold
// no secrets.
type Database struct {
	ID       string
	Created  bool   // by this process: no member knows it
	Postgres string // address
	Redis    string // address
	// Server returns which server and database that address leads to, "" while it is
	// not known. Nil is never known.
	Server func() string
}

// databaseError says that the fleet works with another database than ours.
type databaseError struct {
	Ours  Database
	Fleet string // identity and address
}

func (e *databaseError) Error() string {
	return fmt.Sprintf("the fleet on Redis at %s works with the database %s, and POSTGRES_URL here names another one, %s %s; "+
		"correct POSTGRES_URL or REDIS_URL. If the database was moved or replaced on purpose, stop every instance and run processor fleet adopt",
		e.Ours.Redis, e.Fleet, e.Ours.ID, e.Ours.Postgres)
}

// ExitCode returns that of a bad configuration.
func (e *databaseError) ExitCode() int { return 3 }

// copyError says that a live member works with our database on another server: one
// of the two is a copy.
type copyError struct {
	Ours   Database
	Member string
	Theirs string // address
}

func (e *copyError) Error() string {
	return fmt.Sprintf("%s, of the fleet on Redis at %s, works with the database %s at %s, and POSTGRES_URL here, %s, leads to a copy of it on another server "+
		"(or that one does): correct POSTGRES_URL or REDIS_URL of whichever is not meant. If the database was moved, stop every instance before the first one starts with the new address",
		e.Member, e.Ours.Redis, e.Ours.ID, e.Theirs, e.Ours.Postgres)
}

// ExitCode returns that of a bad configuration.
func (e *copyError) ExitCode() int { return 3 }

// redisError says that a fleet works with our database on another Redis.
type redisError struct {
	Ours   Database
	Leader string // of that fleet
}

func (e *redisError) Error() string {
	return fmt.Sprintf("%s leads the fleet of the database at %s and is alive, and no member of it is on Redis at %s: it has another Redis; "+
		"correct REDIS_URL or POSTGRES_URL. If Redis was moved, stop every instance before the first one starts with the new address",
		e.Leader, e.Ours.Postgres, e.Ours.Redis)
}

// ExitCode returns that of a bad configuration.
func (e *redisError) ExitCode() int { return 3 }

// WorkStatus is the progress that a heartbeat reports, sampled at each beat.
type WorkStatus struct {
	InFlight      int    // entries received and not finished
	Progress      uint64 // advances whenever something is committed or finished
	CallsReturned uint64 // advances whenever a server call of a worker returns, successfully or not
	Blocked       bool   // the last commit failed because another session held a lock
	Shards        []int
	ShardFinished []uint64          // entries finished of each of them since the start
	Refusal       *protocol.Refusal // why Postgres rejects rows that are not at fault; nil while it does not
	Waits         []protocol.Wait   // what does not go on
	Hot           []protocol.HotDevice
	Usage         Usage
}

// Client is the Redis connection of heartbeats and the leader's lock.
type Client = redis.UniversalClient

// lastHeartbeat is the most recent heartbeat of a member.
type lastHeartbeat struct {
	Member
	at time.Time
}

// steadyAfter is how long Postgres must have answered before a member without
// sessions counts as ended: a live one asks each second.
const steadyAfter = 10 * time.Second

// leaderAlive is how recently a live leader has asked Postgres for something: it does so each
// second. It is less than MEMBER_TTL by default, so that a crashed one is not waited for once its heartbeat has expired.
const leaderAlive = 3 * time.Second

// leaderBack is how long after a start of Postgres a live leader may have no sessions yet, and bounds
// for how long one that was alive is waited for.
const leaderBack = 10 * time.Second

// silentFor is how long a member that disappeared without a release is
// remembered.
const silentFor = time.Hour

// Keys are the names of the heartbeats in Redis: an identity's key is Prefix, a
// colon and the identity.
type Keys struct {
	Prefix   string // also the key of the set of identities
	Lock     string
	Database string // the fleet's database
}

// Membership keeps this member's heartbeat and watches those of other members.
type Membership struct {
	cfg        Config
	client     Client
	keys       Keys
	workStatus func() WorkStatus
	log        *slog.Logger
	wake       chan struct{} // beat now; size one, coalesced
	name       string        // identity and incarnation; never changes

	database Database    // set before Join; an empty ID for any
	entered  atomic.Bool // the fleet's database is known to be ours: it may be entered again

	serverChanged atomic.Bool // since the last poll: the others could not beat either

	rowLocks func() []protocol.RowLock       // which shards wait for; set before Run
	check    func(ctx context.Context) error // verifies that the same server answers; set before Run

	// liveLeader returns the leader that Postgres names, "" for none and for one that has not
	// asked it for anything within that time. It fails if Postgres has started within the other; set before Join
	liveLeader func(ctx context.Context, within, started time.Duration) (string, error)

	mu             sync.Mutex
	self           Member                    // written by beat, read everywhere
	watch          *protocol.FailureDetector // written by poll, read everywhere
	members        []Member                  // of the last poll
	lastHeartbeats map[string]lastHeartbeat
	polled         bool      // at least one poll succeeded
	able           string    // the eligible members that changed was last told of
	sinkDown       time.Time // since when Postgres has not answered; zero while it does
	sinkFailed     time.Time // when Postgres last did not answer
	changed        func()    // called when a member came or went
	unreadable     lograte.Limit
	peers          atomic.Int32
}

// NewMembership returns the membership of a member that has not joined yet.
func NewMembership(cfg Config, client Client, keys Keys, workStatus func() WorkStatus, log *slog.Logger) (*Membership, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	r := &Membership{
		cfg: cfg, client: client, keys: keys, workStatus: workStatus, log: log.With("component", "membership"),
		wake: make(chan struct{}, 1), changed: func() {}, rowLocks: func() []protocol.RowLock { return nil }, check: func(context.Context) error { return nil },
		liveLeader:     func(context.Context, time.Duration, time.Duration) (string, error) { return "", nil },
		lastHeartbeats: make(map[string]lastHeartbeat),
		watch:          protocol.NewFailureDetector(protocol.FailureDetectorConfig{TTL: cfg.MemberTTL, SinkGrace: cfg.SinkGrace, Stall: cfg.ClaimThreshold}),
		self: Member{
			Instance: cfg.Instance, Incarnation: cmp.Or(cfg.Incarnation, rand.Text()[:10]), Version: cfg.Version, Deploy: cfg.Deploy, Protocol: protocol.Version,
			Host: host, PID: os.Getpid(), Started: time.Now().UTC(),
		},
	}
	r.name = r.self.Name()
	return r, nil
}

// Name returns this member's identity and incarnation.
func (r *Membership) Name() string { return r.name }

// onChange registers f to be called whenever a member joined, left, or changed
// its eligibility. Call it before Run.
func (r *Membership) onChange(f func()) { r.changed = f }

// Belong says which database this member works with. It must be called before
// Join.
func (r *Membership) Belong(d Database) {
	r.database = d
	r.entered.Store(d.Created)
	r.self.Database, r.self.Postgres = d.ID, d.Postgres
}

// errDatabaseUnknown says that Redis does not know the fleet's database.
var errDatabaseUnknown = errors.New("the fleet's database is not entered in Redis, waiting for a member that knows it")

// join claims the identity. While another incarnation has it, Join watches its
// heartbeat: if that advances, Join fails with an IdentityError; if not, Join
// waits until it expires. Join retries while Redis is unavailable.
//
// Where Redis does not know the fleet's database, as after a flush, members enter
// it again within a beat, and a joining member leaves it to them for one TTL.
//
// While a live member works with the same database on another server, Join waits for
// it to end, or to follow a failover, and then fails with a copyError.
//
// While Postgres names a leader that is alive and no member is on this Redis, Join waits for
// one, as after a flush, and then fails with a redisError. A fleet that lives is without such a
// leader for moments, as between two: Join goes on waiting for one TTL, or leaderBack.
func (r *Membership) join(ctx context.Context) error {
	var first *Member
	var unknown, copied time.Time
	var led observation
	var quiet lograte.Limit
	for {
		holder, err := r.enter(ctx, &led)
		if !isCopyError(err) {
			copied = time.Time{}
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case isCopyError(err):
			if copied.IsZero() {
				copied = time.Now()
				r.log.Warn("a member works with the same database on another server; waiting for its heartbeat to expire or follow", "err", err)
			}
			if time.Since(copied) > 2*r.cfg.MemberTTL {
				return err
			}
		case isRedisError(err):
			r.redisUnavailable()
			unknown = time.Time{}
			r.entered.Store(false)
			if led.last.Sub(led.first) > 3*r.cfg.MemberTTL {
				return err
			}
		case isDatabaseError(err):
			return err
		case errors.Is(err, errDatabaseUnknown):
			if unknown.IsZero() {
				r.redisUnavailable() // which was flushed: others' heartbeats were, too
				unknown = time.Now()
				r.log.Info("waiting for a member that knows the fleet's database", "duration", r.cfg.MemberTTL)
			}
			r.entered.Store(time.Since(unknown) >= r.cfg.MemberTTL)
		case err != nil:
			r.redisUnavailable()
			if quiet.Pass() {
				r.log.Warn("joining failed, will retry", "err", err)
			}
		case holder == nil:
			return nil
		case first == nil || first.Incarnation != holder.Incarnation:
			first = holder
			r.log.Warn("instance ID in use; waiting for its heartbeat to expire", "member", holder.Name())
		case holder.Number != first.Number:
			return &identityError{Instance: r.cfg.Instance, Holder: *holder}
		}
		if err := pause(ctx, r.cfg.beatEvery()); err != nil {
			return err
		}
	}
}

// observation is when a joining member has seen a leader that is alive, and no member on its Redis.
type observation struct {
	met         bool // a member was on its Redis before
	leader      string
	first, last time.Time
	failed      time.Time // when it last could not look
}

// errLeaderUnknown says that a live leader may not have asked Postgres for anything since that is back.
var errLeaderUnknown = errors.New("no leader is alive, but Postgres did not answer a moment ago; looking again")

// enter sends the first heartbeat, unless a fleet works with our database on another Redis. A
// leader ends its term soon after it is cut off from Redis, so one that lives and is not here
// has another. A heartbeat that was copied does not show that its member is here: if it is, its next
// one will. One that cannot be read may be of the fleet.
//
// One look that sees no leader proves nothing soon after others that did, or that failed: the next one may only be due.
func (r *Membership) enter(ctx context.Context, led *observation) (holder *Member, err error) {
	members, _, unreadable, err := readMembers(ctx, r.client, r.keys, 0)
	if err != nil {
		return nil, fmt.Errorf("read the members: %w", err)
	}
	if unreadable != nil || slices.ContainsFunc(there(members), func(m Member) bool { return !m.copied }) {
		*led = observation{met: true}
		return r.beat(ctx, true)
	}
	back := min(leaderBack, 2*r.cfg.MemberTTL) // a power cut of all costs that, and a MEMBER_TTL
	if led.met {
		back = 0 // the heartbeat that expired was the fleet's: who led has ended
	}
	leader, err := r.liveLeader(ctx, leaderAlive, back)
	now := time.Now()
	if err != nil {
		led.failed = now
		return nil, err
	}
	if wait := min(r.cfg.MemberTTL, leaderBack); now.Sub(led.last) >= wait && now.Sub(led.failed) >= wait {
		*led = observation{met: led.met}
	}
	if leader != "" {
		led.leader, led.last = leader, now
	}
	switch {
	case led.leader != "":
	case led.failed.IsZero():
		return r.beat(ctx, true)
	default:
		return nil, errLeaderUnknown
	}
	err = &redisError{Ours: r.database, Leader: led.leader}
	if led.first.IsZero() {
		led.first = now
		r.log.Warn("no member is on this Redis though a leader is alive; waiting for one", "err", err)
	}
	return nil, err
}

// redisUnavailable records that the others could not beat either: those who are not found
// right after that are not gone.
func (r *Membership) redisUnavailable() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watch.RedisUnavailable(time.Now())
}

// Wake triggers a heartbeat and a poll of the other members immediately: a
// notification said that something changed.
func (r *Membership) Wake() { wakeUp(r.wake) }

// Run beats and polls until ctx ends. It fails with an IdentityError when
// another incarnation has taken over the identity.
func (r *Membership) Run(ctx context.Context) error {
	tick := time.NewTicker(r.cfg.beatEvery())
	defer tick.Stop()
	expires := time.NewTimer(time.Hour)
	defer expires.Stop()
	var quiet lograte.Limit
	for {
		err := r.heartbeatRound(ctx)
		if _, taken := err.(*identityError); taken { //nolint:errorlint // made here, never wrapped
			return err
		}
		if isDatabaseError(err) {
			return err
		}
		if err != nil && ctx.Err() == nil && quiet.Pass() {
			r.log.Warn("membership refresh failed, will retry", "err", err)
		}
		// A member is gone when its time is over, not when others look the next time.
		expires.Reset(r.untilExpiry())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-expires.C:
		case <-r.wake:
		}
	}
}

// untilExpiry returns how long it takes until the next member is gone, if it stays silent.
func (r *Membership) untilExpiry() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if at := r.watch.Expiry(now); !at.IsZero() {
		return max(time.Millisecond, at.Sub(now))
	}
	return time.Hour
}

// heartbeatRound sends one heartbeat and does one poll of the other members.
func (r *Membership) heartbeatRound(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.MemberTTL/2)
	defer cancel()
	holder, err := r.beat(ctx, false)
	if err == nil && holder != nil {
		return &identityError{Instance: r.cfg.Instance, Holder: *holder}
	}
	var members []Member
	if err == nil {
		if err := r.check(ctx); err != nil {
			r.log.Debug("could not verify server identity", "err", err)
		}
		members, err = r.read(ctx)
	}
	r.mu.Lock()
	now := time.Now()
	if err != nil {
		r.watch.RedisUnavailable(now)
		r.mu.Unlock()
		return fmt.Errorf("read the members: %w", err)
	}
	beats := make([]protocol.Beat, len(members))
	for i, m := range members {
		beats[i] = m.beat()
	}
	if r.serverChanged.Swap(false) {
		// A restart may fall between two of our heartbeats and keep others from
		// theirs: nobody was seen to end.
		r.watch.RedisUnavailable(now)
	}
	r.watch.Observe(now, beats)
	for _, m := range members {
		r.lastHeartbeats[m.Name()] = lastHeartbeat{m, now}
	}
	r.members, r.polled = there(members), true
	maps.DeleteFunc(r.lastHeartbeats, func(_ string, h lastHeartbeat) bool { return now.Sub(h.at) > silentFor })
	peers := 0
	for _, m := range r.members {
		if m.Name() != r.name && !r.watch.Gone(now, m.Name()) {
			peers++
		}
	}
	r.peers.Store(int32(peers))
	// Compared with what was told before, since members are gone while nobody looks.
	able := r.eligibleKey()
	changed := able != r.able
	r.able = able
	r.mu.Unlock()
	if changed {
		r.changed()
	}
	return nil
}

// eligibleKey returns the eligible members in comparable form. The caller holds
// mu.
func (r *Membership) eligibleKey() string {
	return fmt.Sprint(r.watch.Eligible(time.Now()))
}

// rowLocksTold bounds the locks in a heartbeat, since each carries a query.
const rowLocksTold = 16

// waitsTold bounds the waits in a heartbeat: those of all shards, by default.
const waitsTold = 64

// hotTold bounds the hot devices in a heartbeat.
const hotTold = 10

// beat renews the heartbeat; the first one, joining, looks at those of other members.
func (r *Membership) beat(ctx context.Context, joining bool) (holder *Member, err error) {
	v, locks := r.workStatus(), r.rowLocks()
	r.mu.Lock()
	r.self.Number++
	r.self.InFlight, r.self.Progress, r.self.CallsReturned, r.self.Shards, r.self.ShardFinished = v.InFlight, v.Progress, v.CallsReturned, v.Shards, v.ShardFinished
	r.self.Blocked, r.self.RowLocks = v.Blocked, locks[:min(len(locks), rowLocksTold)]
	r.self.Refusal, r.self.Usage, r.self.Waits, r.self.Hot = v.Refusal, v.Usage, v.Waits[:min(len(v.Waits), waitsTold)], v.Hot[:min(len(v.Hot), hotTold)]
	r.self.SinkDown, r.self.Server = 0, ""
	if r.database.Server != nil && r.sinkDown.IsZero() { // else it is the one that answered before
		r.self.Server = r.database.Server()
	}
	server := ""
	if joining {
		server = r.self.Server
	}
	if !r.sinkDown.IsZero() {
		r.self.SinkDown = time.Since(r.sinkDown)
	}
	text, err := json.Marshal(r.self)
	r.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("write the heartbeat: %w", err)
	}
	enter := "0"
	if r.entered.Load() {
		enter = "1"
	}
	reply, err := beatScript.Run(ctx, r.client, []string{r.key(), r.keys.Prefix, r.keys.Database},
		r.self.Incarnation, text, r.cfg.MemberTTL.Milliseconds(), r.cfg.Instance,
		r.database.ID, r.database.Postgres, enter, server).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("beat: %w", err)
	}
	switch reply[0] {
	case "":
		r.entered.Store(true)
		return nil, nil //nolint:nilnil // no other holder
	case "database":
		return nil, &databaseError{Ours: r.database, Fleet: reply[1]}
	case "copy":
		return nil, &copyError{Ours: r.database, Member: reply[1], Theirs: reply[2]}
	case "unknown":
		return nil, errDatabaseUnknown
	}
	holder = &Member{}
	if err := json.Unmarshal([]byte(reply[1]), holder); err != nil {
		return nil, fmt.Errorf("read the heartbeat of %s: %w", r.cfg.Instance, err)
	}
	return holder, nil
}

// isDatabaseError reports whether the database is not the fleet's, or not the one that this
// process started with.
func isDatabaseError(err error) bool {
	_, other := errors.AsType[*databaseError](err)
	f, failed := errors.AsType[*protocol.Failure](err)
	return other || failed && f.Kind == protocol.Misconfigured
}

func isRedisError(err error) bool {
	_, other := errors.AsType[*redisError](err)
	return other
}

func isCopyError(err error) bool {
	_, copied := errors.AsType[*copyError](err)
	return copied
}

func (r *Membership) key() string { return r.keys.Prefix + ":" + r.cfg.Instance }

func (r *Membership) read(ctx context.Context) ([]Member, error) {
	members, silent, unreadable, err := readMembers(ctx, r.client, r.keys, r.cfg.MemberTTL)
	r.mu.Lock()
	if unreadable != nil && r.unreadable.Pass() {
		r.log.Error("heartbeat skipped: its member counts as silent; if no member has that identity, delete the key", "err", unreadable)
	}
	r.mu.Unlock()
	if err == nil && len(silent) > 0 {
		r.client.SRem(ctx, r.keys.Prefix, silent...) // a live member adds itself again
	}
	return members, err
}

// ReadMembers returns the heartbeats of members that are there. It writes nothing. It
// fails for one that cannot be read: what must not happen while an instance is alive would
// take its member for none.
func ReadMembers(ctx context.Context, client Client, keys Keys) ([]Member, error) {
	members, _, unreadable, err := readMembers(ctx, client, keys, 0)
	if err == nil {
		err = unreadable
	}
	if err != nil {
		return nil, err
	}
	return there(members), nil
}

// there returns the members that have not left.
func there(members []Member) []Member {
	return slices.DeleteFunc(slices.Clone(members), func(m Member) bool { return m.Left })
}

// readMembers returns the heartbeats that have not expired, and the identities
// of those that have. A heartbeat is written to live for ttl, so that its age is known;
// it stays 0 where ttl is. What is not one of ours is skipped, for the reason unreadable:
// it must not hide the members.
func readMembers(ctx context.Context, client Client, keys Keys, ttl time.Duration) (members []Member, silent []any, unreadable, err error) {
	list, err := membersScript.Run(ctx, client, []string{keys.Prefix}).Slice()
	if err != nil {
		return nil, nil, nil, err
	}
	server, list := list[0], list[1:]
	for row := range slices.Chunk(list, 3) { // identity, heartbeat or nil, milliseconds left
		text, ok := row[1].(string)
		if !ok {
			silent = append(silent, row[0])
			continue
		}
		var m Member
		err := json.Unmarshal([]byte(text), &m)
		if err == nil && m.Instance != row[0] {
			err = errors.New("it names another identity")
		}
		if err != nil {
			unreadable = errors.Join(unreadable, fmt.Errorf("read %s:%s: %.100q is no heartbeat: %w", keys.Prefix, row[0], text, err))
			continue
		}
		m.copied = m.Redis != "" && server != "" && m.Redis != server
		// One without an expiry, or that ends just now, says nothing of its age.
		if left, ok := row[2].(int64); ok && ttl > 0 && left > 0 {
			m.age = max(0, ttl-time.Duration(left)*time.Millisecond)
		}
		members = append(members, m)
	}
	return members, silent, unreadable, nil
}

// announce marks this member as leaving, so that the leader reassigns its
// shards while it still works.
func (r *Membership) announce(ctx context.Context) error {
	r.mu.Lock()
	r.self.Leaving = true
	r.mu.Unlock()
	_, err := r.beat(ctx, false)
	wakeUp(r.wake)
	return err
}

// leave sends this member's last heartbeat, which gives its identity free. It stays for
// MemberTTL: another member may not look between announce and leave, and would take a
// heartbeat that is missing for one that was lost.
func (r *Membership) leave(ctx context.Context) error {
	r.mu.Lock()
	r.self.Number++
	r.self.Left = true
	text, err := json.Marshal(r.self)
	r.mu.Unlock()
	if err == nil {
		err = leaveScript.Run(ctx, r.client, []string{r.key()}, r.self.Incarnation, text, r.cfg.MemberTTL.Milliseconds()).Err()
	}
	if err != nil {
		return fmt.Errorf("deregister: %w", err)
	}
	return nil
}

// setPostgresUp records whether Postgres answers this member.
func (r *Membership) setPostgresUp(ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ok {
		r.sinkDown = time.Time{}
		return
	}
	r.sinkFailed = time.Now()
	if r.sinkDown.IsZero() {
		r.sinkDown = r.sinkFailed
	}
}

// postgresUp reports whether the last call of Postgres succeeded.
func (r *Membership) postgresUp() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sinkDown.IsZero()
}

// Peers returns the number of other members.
func (r *Membership) Peers() int { return int(r.peers.Load()) }

// Members returns the members found by the last poll.
func (r *Membership) Members() []Member {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Member(nil), r.members...)
}

// eligible returns the members that may own shards.
func (r *Membership) eligible() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.watch.Eligible(time.Now())
}

// willing reports whether a member hands shards over while it works.
func (r *Membership) willing(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.watch.Willing(time.Now(), name)
}

// stalled returns the members that are stalled, or lost their shards for it.
func (r *Membership) stalled() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.watch.Stalled(time.Now())
}

// silent reports whether a member's heartbeat expired, and returns the last
// one: zero if it expired before this member joined.
func (r *Membership) silent(name string) (last lastHeartbeat, silent bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lastHeartbeats[name], r.polled && r.watch.Gone(time.Now(), name)
}

// rejoined reports whether a member's identity beats again, in any incarnation.
func (r *Membership) rejoined(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, identity := time.Now(), protocol.Identity(name)
	return slices.ContainsFunc(r.members, func(m Member) bool { return m.Instance == identity && !r.watch.Gone(now, m.Name()) })
}

// ended reports whether a member's process was seen to end without a release. That it
// is silent is no evidence: it may be frozen or cut off, or Redis was away. Another
// process must have its identity, or it left no sessions in Postgres, which it and this
// member reached.
func (r *Membership) ended(name string, noSessions bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, last := time.Now(), r.lastHeartbeats[name]
	if last.Leaving {
		return false
	}
	identity := protocol.Identity(name)
	replaced := slices.ContainsFunc(r.members, func(m Member) bool {
		return m.Instance == identity && m.Name() != name && !r.watch.Gone(now, m.Name())
	})
	steady := r.sinkDown.IsZero() && now.Sub(r.sinkFailed) >= steadyAfter
	return replaced || noSessions && steady && last.SinkDown == 0
}

// owner returns what is known of the owner of a shard. That it works counts only for a
// shard that its heartbeat names: of one that it has given up it releases nothing.
func (r *Membership) owner(name string, shard int) protocol.OwnerState {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Before the first poll every member is unknown, not gone. One that is cut off
	// from Postgres cannot release anything there.
	now := time.Now()
	gone := r.polled && (r.watch.Gone(now, name) || r.watch.CutOff(now, name))
	has := false
	for _, m := range r.members {
		if m.Name() == name {
			has = slices.Contains(m.Shards, shard)
		}
	}
	return protocol.OwnerState{
		Gone: gone, Leaving: r.watch.Leaving(name),
		Works: has && r.watch.Works(now, name, r.cfg.HandoffBudget),
	}
}

func wakeUp(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
