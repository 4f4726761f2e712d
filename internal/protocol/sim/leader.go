package sim

import (
	"errors"
	"slices"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
)

// leader is a member's own state of the leadership: step is 0 without the lock,
// 1 with the lock, 2 with the term.
type leader struct {
	token string
	term  int64
	step  int
	busy  bool

	since   int64         // when the term began
	handed  map[int]int64 // since when a shard waits for its owner's release
	planner protocol.Planner
	more    bool // shards are left to assign once others are released
}

// lead requests the lock, or renews it and does the leader's work.
func (p *proc) lead() {
	l := &p.leader
	if l.busy {
		return
	}
	if l.step == 0 {
		if p.leaving {
			return
		}
		l.token = p.w.newToken()
	}
	l.busy = true
	token := l.token
	call(p, redisServer, "lock", func(answer func(bool, error)) {
		r := p.w.redis
		if p.w.now < r.lock.until && r.lock.token != token {
			answer(false, nil)
			return
		}
		r.lock = lease{token, p.w.now + lockTTL}
		answer(true, nil)
	}, func(held bool, err error) {
		switch {
		case err != nil || !held:
			l.step, l.busy = 0, false
		case l.step == 0:
			p.campaign()
		default:
			p.assign()
		}
	})
}

// campaign raises the term after the lock was won.
func (p *proc) campaign() {
	l := &p.leader
	call(p, postgresServer, "raise the term", func(answer func(int64, error)) {
		answer(p.w.pg.elect(p), nil)
	}, func(term int64, err error) {
		p.sink(err)
		l.busy = false
		if err != nil {
			l.step = 0
			return
		}
		l.step, l.term, l.since, l.handed, l.planner = 2, term, p.w.now, make(map[int]int64), protocol.Planner{}
		p.w.logf(p, "leads, term %d", term)
		// The new leader must see each member before it can declare one gone.
		p.watch.RedisUnavailable(p.w.clock())
	})
}

// assign assigns shards to eligible members, and sweeps.
func (p *proc) assign() {
	l := &p.leader
	call(p, postgresServer, "list assignments", func(answer func([]protocol.ShardRecord, error)) {
		var rows []protocol.ShardRecord
		for _, s := range p.w.pg.t.shards {
			rows = append(rows, protocol.ShardRecord{Assigned: s.assigned, Owner: s.owner, Epoch: s.epoch})
		}
		answer(rows, nil)
	}, func(rows []protocol.ShardRecord, err error) {
		p.sink(err)
		if err != nil || l.step == 0 {
			l.busy = false
			return
		}
		p.sweep()
		current, overdue := make([]string, len(rows)), make(map[string]bool)
		for i, s := range rows {
			current[i] = s.Assigned
			if s.Owner == "" || s.Owner == s.Assigned {
				delete(l.handed, i)
				continue
			}
			if _, ok := l.handed[i]; !ok {
				l.handed[i] = p.w.now
			}
			overdue[s.Owner] = overdue[s.Owner] || p.w.now-l.handed[i] >= budgets.For(protocol.OwnerState{
				Leaving: p.watch.Leaving(s.Owner), Works: p.watch.Works(p.w.clock(), s.Owner, millis(handOffBudget)),
			}).Milliseconds()
		}
		loads := p.w.loads
		if p.w.now-l.since < loadsKnown {
			loads = nil
		}
		members := p.watch.Eligible(p.w.clock())
		target := l.planner.Plan(p.w.clock(), current, members, p.w.outdated(members), nil, loads)
		next := protocol.Pace(rows, target,
			func(member string) bool { return !overdue[member] && p.watch.Willing(p.w.clock(), member) },
			func(shard int) bool {
				since, waits := l.handed[shard]
				return waits && p.w.now-since >= handOffBudget
			})
		l.more = !slices.Equal(next, target)
		if slices.Equal(next, current) {
			l.busy = false
			return
		}
		term := l.term
		p.links[postgresServer].delay, p.w.holdAssign = max(p.links[postgresServer].delay, p.w.holdAssign), 0
		call(p, postgresServer, "assign", func(answer func(bool, error)) {
			answer(true, p.w.pg.assign(p, term, next))
		}, func(_ bool, err error) {
			l.busy = false
			l.planner.Assigned(next)
			if err != nil {
				if errors.Is(err, errFenced) {
					p.w.reach(rare.TermRefused)
				}
				p.w.logf(p, "leads no more")
				l.step = 0
			}
		})
	})
}

func (p *proc) sweep() {
	call(p, redisServer, "sweep", func(answer func(bool, error)) {
		p.w.redis.sweep(p, claimIdle)
		answer(true, nil)
	}, func(bool, error) {})
}
