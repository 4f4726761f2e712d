package oracle

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
)

// Commit says when and by whom a row of positions was committed.
type Commit struct {
	Device string
	TimeUS int64  // device time
	AtUS   int64  // of the commit, by the database
	Member string // "" where it is not known
}

// OwnershipSpan is the begin of an ownership of a shard, or of a time without one.
type OwnershipSpan struct {
	Shard  int
	Epoch  int64
	Owner  string // "" when released
	FromUS int64  // commit of the change, by the database
}

// Order is the verdict on when and by whom rows were committed.
type Order struct {
	// Reordered counts rows committed after a row of the same device that
	// follows it in the stream.
	Reordered int64
	// Stale counts rows committed by a member that did not own the shard.
	Stale int64
	// Unjudged counts rows of which that is unknown.
	Unjudged int64
	// Members counts the rows of each member.
	Members  map[string]int64
	Examples []string
}

// Good reports whether nothing was committed out of order or by a stale owner.
func (o *Order) Good() bool { return o.Reordered == 0 && o.Stale == 0 }

// Shards is how many shards there were at a moment.
type Shards func(atUS int64) int

// Always is a number of shards that does not change.
func Always(n int) Shards { return func(int64) int { return n } }

// OrderRules are what commits are judged by, besides the order of the stream.
type OrderRules struct {
	// Spans are in the order of their commits. Owners are not judged without them.
	Spans  []OwnershipSpan
	Shards Shards
	// Deferred are entries that a device's others did not wait for. Nil means none.
	Deferred map[ID]bool
	// Stored, if any, is called for each row that was sent, with its shard.
	Stored func(c Commit, shard int, id ID)
}

// Order judges commits, which are ordered by device in bytes and device time,
// by the order of the stream and by rules. Rows that were not sent are Judge's to find.
func (o *Oracle) Order(commits iter.Seq2[Commit, error], rules OrderRules) (*Order, error) {
	j := &orderChecker{verdict: &Order{Members: map[string]int64{}}, rules: rules, spans: make(map[int][]OwnershipSpan)}
	for _, t := range rules.Spans {
		j.spans[t.Shard] = append(j.spans[t.Shard], t)
	}
	next, stop := iter.Pull(o.groups())
	defer stop()
	group, more := next()
	for c, err := range commits {
		if err != nil {
			return nil, err
		}
		j.verdict.Members[c.Member]++
		j.owner(c)
		for more && o.before(group[0], c) {
			group, more = next()
		}
		if more && o.devices[group[0].device] == c.Device && group[0].timeUS == c.TimeUS {
			if !rules.Deferred[group[0].id] {
				j.row(c, group[0].id)
			}
			if rules.Stored != nil {
				rules.Stored(c, shardOf(c.Device, rules.Shards(c.AtUS)), group[0].id)
			}
		}
	}
	j.device()
	return j.verdict, nil
}

// before reports whether a record comes before a row in the order of both.
func (o *Oracle) before(r sentRecord, c Commit) bool {
	return cmp.Or(cmp.Compare(o.devices[r.device], c.Device), cmp.Compare(r.timeUS, c.TimeUS)) < 0
}

type orderChecker struct {
	verdict *Order
	rules   OrderRules
	spans   map[int][]OwnershipSpan // by shard
	name    string                  // the device whose rows these are
	rows    []committed
}

type committed struct {
	id     ID
	at     int64
	member string
}

func (j *orderChecker) row(c Commit, id ID) {
	if c.Device != j.name {
		j.device()
		j.name = c.Device
	}
	j.rows = append(j.rows, committed{id: id, at: c.AtUS, member: c.Member})
}

// device judges the rows of one device: in stream order, commits never go back.
func (j *orderChecker) device() {
	slices.SortFunc(j.rows, func(a, b committed) int { return a.id.Compare(b.id) })
	var latest committed
	for _, r := range j.rows {
		if r.at < latest.at {
			j.verdict.Reordered++
			j.example("device %s: entry %s was committed by %s %d us before entry %s by %s, which precedes it",
				j.name, r.id, r.member, latest.at-r.at, latest.id, latest.member)
			continue
		}
		latest = r
	}
	j.rows = j.rows[:0]
}

// owner judges whether the member owned the shard at the moment of the commit.
// Two changes at the same microsecond are both taken to be in force.
func (j *orderChecker) owner(c Commit) {
	if len(j.spans) == 0 || c.Member == "" {
		j.verdict.Unjudged++
		return
	}
	shard := shardOf(c.Device, j.rules.Shards(c.AtUS))
	ownershipSpans := j.spans[shard]
	after, _ := slices.BinarySearchFunc(ownershipSpans, c.AtUS, func(t OwnershipSpan, at int64) int {
		if t.FromUS > at {
			return 1
		}
		return -1
	})
	owner := ""
	for i := after - 1; i >= 0; i-- {
		if owner = ownershipSpans[i].Owner; owner == c.Member {
			return
		}
		if ownershipSpans[i].FromUS < c.AtUS {
			break
		}
	}
	j.verdict.Stale++
	j.example("device %s: a row was committed by %q while shard %d was owned by %q", c.Device, c.Member, shard, owner)
}

func (j *orderChecker) example(format string, args ...any) {
	if len(j.verdict.Examples) < maxExamples {
		j.verdict.Examples = append(j.verdict.Examples, fmt.Sprintf(format, args...))
	}
}
