package protocol

import (
	"cmp"
	"math"
	"slices"
	"time"
)

const (
	reliefSlack  = 0.15             // by how much the busiest member may exceed the mean before shards move for load
	planSlack    = 0.05             // the same when shards move anyway, since members came or went and counts do not do
	reliefEvery  = 5 * time.Second  // how often load is looked at
	reliefBudget = 10               // moves for load in a minute
	shardRest    = 60 * time.Second // how long a shard stays after it moved for load
	deployStep   = 60 * time.Second // how long a deploy may take to replace one more member
	mostInherits = 1.3              // of the mean that a member may have of what those that leave had
)

// AdoptedFor is how long what others arranged stays: an earlier leader, while loads are
// unknown, or an operator.
const AdoptedFor = 60 * time.Second

// Planner decides who should own each shard, for one term of a leader. It plans when
// members come or go: by load where it is known, otherwise by count (Assign). While
// they stay it relieves the busiest member by load, a few shards a minute, so that
// a passing peak moves little and no shard goes to and fro. What an operator assigns
// (processor claim) becomes the plan, and is evened out when members come or go, or after
// AdoptedFor.
type Planner struct {
	members  []string
	target   []string
	known    []string  // what is assigned, as far as this planner knows
	adopted  time.Time // when the target was taken over from others; zero once it is checked
	claimed  bool      // it was taken over from an operator, and is not to be moved for load
	outdated int       // members that a deploy was about to replace
	replaced time.Time // when they last became fewer, or the deploy began
	uneven   bool      // the target is that of a deploy, and not evened out
	forLoad  bool      // the target relieves a member
	looked   time.Time
	moves    []time.Time       // for load, within the last minute
	moved    map[int]time.Time // when a shard last moved for load
	locked   []int             // shards whose assignment could not be written
}

// Plan returns who should own each shard: current is the member each shard is assigned
// to now, members are those that may own shards, outdated are those of them that a deploy
// is about to replace, held reports which shards an operator holds back, nil for none, and
// loads are the entries per second of the shards, nil while they are unknown.
//
// During a deploy the shards of those that leave go to those that have come, and nothing
// else moves, so that each shard moves once. If a minute passes in which none is
// replaced, the shards are evened out all the same.
func (p *Planner) Plan(now time.Time, current, members, outdated []string, held func(shard int) bool, loads []float64) []string {
	if len(members) == 0 {
		return slices.Clone(current)
	}
	if held == nil {
		held = func(int) bool { return false }
	}
	members = slices.Compact(slices.Sorted(slices.Values(members)))
	current = slices.Clone(current)
	p.follow(now, current, members)
	if p.target != nil {
		for i := range current {
			if held(i) && current[i] == "" {
				current[i] = p.target[i] // where it goes once it is let go
			}
		}
	}
	changed := p.target != nil && !slices.Equal(members, p.members)
	deploys := p.deploys(now, members, outdated)
	allAssigned, allHave := shared(current, members, held)
	switch {
	case p.target == nil && allAssigned && (allHave || p.claimed):
		// A new leader knows no loads. What its predecessor arranged by load stays until
		// they are known.
		p.target, p.adopted = current, now
	case deploys && (p.target == nil || changed):
		p.target, p.uneven, p.claimed, p.forLoad = inherit(current, members, outdated, loads), true, false, false
	case !deploys && !changed && p.claimed && loads != nil && allHave && now.Sub(p.adopted) >= AdoptedFor:
		p.adopted, p.claimed = time.Time{}, false // what was arranged by load is relieved, and not planned anew
	case p.target == nil || changed || p.uneven && !deploys || p.unowned(held) ||
		!deploys && !p.adopted.IsZero() && (loads == nil || p.claimed) && now.Sub(p.adopted) >= AdoptedFor:
		p.target, p.uneven, p.adopted, p.claimed, p.forLoad = evenOut(current, members, loads), false, time.Time{}, false, false
	case !deploys && !p.claimed && loads != nil && now.Sub(p.looked) >= reliefEvery && p.reached(current):
		p.relieve(now, loads)
	}
	p.members = members
	return slices.Clone(p.target)
}

// follow takes over what others have assigned since the last plan.
func (p *Planner) follow(now time.Time, current, members []string) {
	for i, m := range current {
		if p.target == nil || m == p.known[i] || m == p.target[i] {
			continue
		}
		if _, ok := slices.BinarySearch(members, m); ok {
			p.target[i], p.adopted, p.claimed = m, now, true
		}
	}
	p.known = slices.Clone(current)
}

// Assigned notes what has been assigned on the way to the target, except to the shards whose
// rows are locked: for those, nothing else waits.
func (p *Planner) Assigned(next []string, locked ...int) {
	p.known, p.locked = slices.Clone(next), locked
}

// reached reports whether all shards are assigned as planned that can be.
func (p *Planner) reached(current []string) bool {
	for i, m := range current {
		if m != p.target[i] && !slices.Contains(p.locked, i) {
			return false
		}
	}
	return true
}

// Claimed has the first plan leave what it finds although a member may have nothing, since
// an operator arranged it within AdoptedFor. Later plans see for themselves.
func (p *Planner) Claimed() { p.claimed = p.claimed || p.target == nil }

// KeepsClaim reports whether the target is what an operator arranged. If not, a leader that
// follows must not leave it either.
func (p *Planner) KeepsClaim() bool { return p.claimed }

// ForLoad reports whether what the last plan still has to move relieves a busy member.
func (p *Planner) ForLoad() bool { return p.forLoad }

// Settled reports whether the target is even: it is not while a deploy is under way, and
// while what an operator arranged stays.
func (p *Planner) Settled() bool { return p.target != nil && !p.uneven && !p.claimed }

// deploys reports whether a deploy is under way that moves on.
func (p *Planner) deploys(now time.Time, members, outdated []string) bool {
	n := 0
	for _, m := range outdated {
		if _, ok := slices.BinarySearch(members, m); ok {
			n++
		}
	}
	if n < p.outdated || p.outdated == 0 {
		p.replaced = now
	}
	p.outdated = n
	return n > 0 && n < len(members) && now.Sub(p.replaced) < deployStep
}

// unowned reports whether a shard that is not held back has no target.
func (p *Planner) unowned(held func(shard int) bool) bool {
	for i, m := range p.target {
		if m == "" && !held(i) {
			return true
		}
	}
	return false
}

// evenOut shares all shards between members: by count, which moves least, and from there by
// load where counts are known to make one member too busy. By load alone a newcomer would get
// the few heaviest shards: as much work today, and a third of what another has tomorrow.
func evenOut(current, members []string, loads []float64) []string {
	next := Assign(current, members)
	if loads == nil || newBalance(next, members, members, loads).even(reliefSlack) {
		return next
	}
	return Place(next, members, loads, planSlack, len(current), func(int) bool { return true })
}

// inherit gives the shards of none of the members to those that are not outdated.
func inherit(current, members, outdated []string, loads []float64) []string {
	next := slices.Clone(current)
	if loads == nil {
		loads = slices.Repeat([]float64{1}, len(current))
	}
	successors := slices.DeleteFunc(slices.Clone(members), func(m string) bool { return slices.Contains(outdated, m) })
	newBalance(next, members, successors, loads)
	return next
}

func (p *Planner) relieve(now time.Time, loads []float64) {
	p.looked = now
	p.moves = slices.DeleteFunc(p.moves, func(t time.Time) bool { return now.Sub(t) >= time.Minute })
	if p.moved == nil {
		p.moved = make(map[int]time.Time)
	}
	next := Place(p.target, p.members, loads, reliefSlack, reliefBudget-len(p.moves), func(shard int) bool {
		t, ok := p.moved[shard]
		return !ok || now.Sub(t) >= shardRest
	})
	for i := range next {
		if next[i] != p.target[i] {
			p.moves = append(p.moves, now)
			p.moved[i], p.forLoad = now, true
		}
	}
	p.target = next
}

// shared reports whether members, sorted, share all shards that are not held back,
// however evenly, and whether each has one.
func shared(current, members []string, held func(shard int) bool) (all, each bool) {
	has := make(map[string]bool)
	for i, m := range current {
		if _, ok := slices.BinarySearch(members, m); ok {
			has[m] = true
		} else if m != "" || !held(i) {
			return false, false
		}
	}
	return true, len(has) == len(members)
}

// Place decides by load who should own each shard. Shards of none of the members go to the
// least busy ones, the heaviest first. Then, while the busiest member exceeds the mean by
// more than slack, one shard of it moves to the least busy member, or two are exchanged,
// if that lowers the higher of the two: at most limit moves, of shards that may move. The
// result is the same for every caller.
func Place(current, members []string, loads []float64, slack float64, limit int, may func(shard int) bool) []string {
	next := slices.Clone(current)
	if len(members) == 0 || len(current) == 0 {
		return next
	}
	b := newBalance(next, members, members, loads)
	for range 2 * len(current) {
		if limit <= 0 || b.even(slack) || !b.step(&limit, may) {
			break
		}
	}
	return next
}

// balance is the load of each member under an assignment.
type balance struct {
	next    []string
	weight  []float64 // of the shards
	members []string
	load    map[string]float64
	mean    float64
}

// idleShare is what a shard costs without entries, as a part of the mean: idle shards are
// shared too, since they may wake.
const idleShare = 0.1

// newBalance returns the balance of next, in which shards of none of the members have gone
// to successors, the heaviest first; to any member where that would make them too busy.
func newBalance(next, members, successors []string, loads []float64) *balance {
	b := &balance{next: next, weight: make([]float64, len(next)), members: slices.Sorted(slices.Values(members)), load: make(map[string]float64)}
	total := 0.0
	for _, l := range loads {
		total += l
	}
	var free []int
	for _, m := range members {
		b.load[m] = 0
	}
	for i := range next {
		b.weight[i] = loads[i] + idleShare*total/float64(len(next))
		if _, ok := b.load[next[i]]; ok {
			b.load[next[i]] += b.weight[i]
		} else {
			free = append(free, i)
		}
		b.mean += b.weight[i] / float64(len(b.load))
	}
	slices.SortStableFunc(free, func(x, y int) int { return cmp.Compare(b.weight[y], b.weight[x]) })
	for _, i := range free {
		to := b.idlest(successors)
		if b.load[to]+b.weight[i] > mostInherits*b.mean {
			to = b.idlest(b.members)
		}
		b.move(i, to)
	}
	return b
}

// even reports whether the busiest member exceeds the mean by no more than slack.
func (b *balance) even(slack float64) bool { return b.load[b.busiest()] <= b.mean*(1+slack) }

func (b *balance) busiest() string {
	return slices.MaxFunc(b.members, func(x, y string) int { return cmp.Compare(b.load[x], b.load[y]) })
}

func (b *balance) idlest(of []string) string {
	return slices.MinFunc(slices.Sorted(slices.Values(of)), func(x, y string) int { return cmp.Compare(b.load[x], b.load[y]) })
}

// move gives a shard to a member.
func (b *balance) move(shard int, to string) {
	if _, ok := b.load[b.next[shard]]; ok {
		b.load[b.next[shard]] -= b.weight[shard]
	}
	b.load[to] += b.weight[shard]
	b.next[shard] = to
}

// step moves one shard from the busiest to the least busy member, or exchanges two, and
// reports whether that lowers the higher load of the two by more than a hundredth of the mean.
func (b *balance) step(limit *int, may func(shard int) bool) bool {
	from, to := b.busiest(), b.idlest(b.members)
	high, low := b.load[from], b.load[to]
	var mine, theirs []int
	for i, m := range b.next {
		switch {
		case !may(i):
		case m == from:
			mine = append(mine, i)
		case m == to:
			theirs = append(theirs, i)
		}
	}
	best, give, take := high-b.mean/100, -1, -1
	for _, i := range mine {
		if after := math.Max(high-b.weight[i], low+b.weight[i]); after < best {
			best, give = after, i
		}
	}
	if give < 0 && *limit >= 2 {
		for _, i := range mine {
			for _, j := range theirs {
				d := b.weight[i] - b.weight[j]
				if after := math.Max(high-d, low+d); after < best {
					best, give, take = after, i, j
				}
			}
		}
	}
	if give < 0 {
		return false
	}
	b.move(give, to)
	*limit--
	if take >= 0 {
		b.move(take, from)
		*limit--
	}
	return true
}
