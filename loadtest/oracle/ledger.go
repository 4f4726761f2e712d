package oracle

import (
	"fmt"
	"slices"
)

// Loss is a row of the ledger of losses.
type Loss struct {
	Cause       string
	First, Last ID    // zero where unknown
	Entries     int64 // negative where unknown
}

func (l *Loss) covers(id ID) bool {
	return (l.First.IsZero() || !id.Less(l.First)) && (l.Last.IsZero() || !l.Last.Less(id))
}

func (l *Loss) String() string {
	count := "an unknown number of"
	if l.Entries >= 0 {
		count = fmt.Sprint(l.Entries)
	}
	return fmt.Sprintf("%s, %s entries from %s to %s", l.Cause, count, l.First, l.Last)
}

// ledger holds the ledger against what is gone: each lost entry is in one of its
// ranges, and it counts neither fewer than are gone nor more than can be. An entry
// whose row is that of another one may be gone as well; nothing shows it.
func (j *judge) ledger() {
	if j.seen.Losses == nil {
		return
	}
	slices.SortFunc(j.lost, ID.Compare)
	within := func(ids []ID, l *Loss) (n int64) {
		for _, id := range ids {
			if l.covers(id) {
				n++
			}
		}
		return n
	}
	counted, exact := int64(0), true
	for i := range j.seen.Losses {
		l := &j.seen.Losses[i]
		if l.Entries < 0 {
			exact = false
			continue
		}
		counted += l.Entries
		if gone := within(j.lost, l) + within(j.unseen, l); l.Entries > gone && !j.seen.OthersToo {
			j.report.find(Finding{Kind: KindLedger, Text: fmt.Sprintf("%s: at most %d of them are gone", l, gone)})
		}
	}
	covered := int64(0)
	for _, id := range j.lost {
		if slices.ContainsFunc(j.seen.Losses, func(l Loss) bool { return l.covers(id) }) {
			covered++
			continue
		}
		j.report.find(Finding{Kind: KindLedger, Entry: id.String(), Text: "is lost, and in no range of the ledger"})
	}
	if exact && counted < covered {
		j.report.find(Finding{Kind: KindLedger, Text: fmt.Sprintf("it counts %d entries, %d in its ranges are lost", counted, covered)})
	}
}

// Request is one that is neither done, failed nor cancelled.
type Request struct {
	Number int64
	Kind   string
	State  string
	Device string // "" for those of a shard
}

// requests reports those that are left over.
func (j *judge) requests() {
	for _, r := range j.seen.Requests {
		j.report.find(Finding{Kind: KindRequest, Device: r.Device, Text: fmt.Sprintf("%s request %d is %s at the end", r.Kind, r.Number, r.State)})
	}
}
