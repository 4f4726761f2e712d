package oracle

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"
)

// DeadLetter is an entry that was dead-lettered.
type DeadLetter struct {
	Source ID
	Class  string // the reason, which may be one that no sender expects
	Fields *LetterFields
}

// Observed is what a run left behind.
type Observed struct {
	// Positions are the rows of the table, ordered by device_id collate "C",
	// ts. ID and Attributes of a row need not outlive the step that yields it.
	Positions iter.Seq2[Row, error]
	// DeadLetters are all entries that were dead-lettered, in any order. Nil means
	// none.
	DeadLetters iter.Seq2[DeadLetter, error]
	// Pending reports which entries are dispatched or deferred and not done. Nil
	// means none.
	Pending func(ID) bool
	// Dispatched is the last entry that was dispatched: those that follow are pending. Nil
	// means all.
	Dispatched *ID
	// Crossings are the rows of timing_records, ordered by device_id collate
	// "C". Nil means that they are not judged.
	Crossings iter.Seq2[Crossing, error]
	// Rules are what the crossings were to be derived by.
	Rules Rules
	// DroppedUS is the device time before which retention dropped rows, those of the entries
	// before DroppedAt, which were all done by then; 0 is none. What was derived from them stays.
	DroppedUS int64
	DroppedAt ID
	// Changes are all changes of timing_records, those of one row in their order. Nil
	// means that revisions are not judged.
	Changes iter.Seq2[Change, error]
	// Deferred are the entries that were deferred at some time, as the database noted. Of
	// several with the same device and time one that was not may precede them. Nil means none.
	Deferred map[ID]bool
	// Refused are the times in which the database refused records. Those that were deferred
	// then are dead letters if that lasted. Nil means none.
	Refused []Refusal
	// Rejections are the entries that were deferred because the database rejected them, which
	// used up an attempt. Nil means none.
	Rejections []Rejection
	// Letters are what the fields of dead letters depend on. Nil means that they
	// are not judged.
	Letters *LetterRules
	// Losses are the rows of the ledger. Nil means that it is not judged.
	Losses []Loss
	// Requests are those that are left over.
	Requests []Request
	// OthersToo says that the tables also hold rows of devices that are not in
	// the send log, which are none of our business.
	OthersToo bool
}

// Kind is what a finding is about.
type Kind string

// The kinds of findings.
const (
	KindLost       Kind = "lost"        // an entry is nowhere
	KindField      Kind = "field"       // a row differs from what was sent
	KindWinner     Kind = "winner"      // a row is that of a later entry with the same device and time
	KindUnexpected Kind = "unexpected"  // a row that nobody sent
	KindDouble     Kind = "double"      // a row, crossing or dead letter that is there twice
	KindDeadLetter Kind = "dead_letter" // dead-lettered though valid, for another reason, or never sent
	KindCrossing   Kind = "crossing"    // a crossing is missing or differs
	KindRevision   Kind = "revision"    // a crossing was changed or withdrawn without reason, or not counted
	KindLedger     Kind = "ledger"      // the ledger of losses says other than what is gone
	KindRequest    Kind = "request"     // a request is left over
	KindAttempt    Kind = "attempt"     // an attempt was used up by what was not the record's fault
)

// Finding is one thing that is not as it must be.
type Finding struct {
	Kind   Kind   `json:"kind"`
	Device string `json:"device,omitempty"`
	Time   string `json:"time,omitempty"` // device time
	Entry  string `json:"entry,omitempty"`
	Text   string `json:"text"`
}

func (f Finding) String() string {
	s := string(f.Kind)
	if f.Device != "" {
		s += " device " + f.Device
	}
	if f.Time != "" {
		s += " at " + f.Time
	}
	if f.Entry != "" {
		s += " entry " + f.Entry
	}
	return s + ": " + f.Text
}

// maxExamples is how many findings of each kind a report keeps.
const maxExamples = 10

// Report is the verdict.
type Report struct {
	Account   Account
	Crossings int64 // crossings that are as they must be
	Revised   int64 // changes and withdrawals of crossings
	Counts    map[Kind]int64
	Examples  []Finding // the first of each kind
}

// Good reports whether everything is as it must be.
func (r *Report) Good() bool { return r.Account.Good() && len(r.Counts) == 0 }

func (r *Report) find(f Finding) {
	if r.Counts[f.Kind]++; r.Counts[f.Kind] <= maxExamples {
		r.Examples = append(r.Examples, f)
	}
	if f.Kind != KindLost {
		r.Account.Mismatches++
	}
}

// Judge compares what a run left behind with what was sent.
func (o *Oracle) Judge(seen Observed) (*Report, error) {
	if seen.Positions == nil {
		return nil, errors.New("judge: no rows given, want those of positions")
	}
	j := &judge{o: o, seen: seen, revision: map[crossingID]int{}, report: &Report{Counts: map[Kind]int64{}}}
	j.report.Account.Entries = int64(o.Entries())
	if err := o.prefer(seen.Rules); err != nil {
		return nil, err
	}
	if err := j.readDeadLetters(); err != nil {
		return nil, err
	}
	j.rejections()
	j.giveUp()
	if err := j.positions(); err != nil {
		return nil, err
	}
	if err := j.refused(); err != nil {
		return nil, err
	}
	j.strayDeadLetters()
	j.ledger()
	if err := j.crossings(); err != nil {
		return nil, err
	}
	if err := j.revisions(); err != nil {
		return nil, err
	}
	j.requests()
	return j.report, nil
}

type judge struct {
	o            *Oracle
	seen         Observed
	deadLettered map[ID]*deadLettered
	lost         []ID
	unseen       []ID               // whether they are gone does not show
	revision     map[crossingID]int // of the rows of timing_records
	report       *Report
}

type deadLettered struct {
	class  string
	sent   bool
	fields *LetterFields
}

func (j *judge) readDeadLetters() error {
	j.deadLettered = map[ID]*deadLettered{}
	if j.seen.DeadLetters == nil {
		return nil
	}
	for d, err := range j.seen.DeadLetters {
		if err != nil {
			return fmt.Errorf("read dead letters: %w", err)
		}
		if j.deadLettered[d.Source] != nil {
			j.report.find(Finding{Kind: KindDouble, Entry: d.Source.String(), Text: "dead-lettered twice"})
			continue
		}
		j.deadLettered[d.Source] = &deadLettered{class: d.Class, fields: d.Fields}
	}
	return nil
}

// positions walks over what was sent and what is there side by side; both are
// ordered by device and time.
func (j *judge) positions() error {
	rows := reader{what: "positions", others: j.others}
	rows.next, rows.stop = iter.Pull2(j.seen.Positions)
	defer rows.stop()
	if err := rows.advance(j); err != nil {
		return err
	}
	for group := range j.o.groups() {
		if group = j.left(group); len(group) == 0 {
			continue
		}
		device := j.o.devices[group[0].device]
		for rows.more && rows.before(device, group[0].timeUS) {
			j.unexpected(&rows.row)
			if err := rows.advance(j); err != nil {
				return err
			}
		}
		if !rows.more || !rows.at(device, group[0].timeUS) {
			j.absent(group)
			continue
		}
		if err := j.present(group, &rows.row); err != nil {
			return err
		}
		if err := rows.advance(j); err != nil {
			return err
		}
	}
	for rows.more {
		j.unexpected(&rows.row)
		if err := rows.advance(j); err != nil {
			return err
		}
	}
	return nil
}

// present judges a row that is there, and the entries that could have made it.
func (j *judge) present(group []sentRecord, row *Row) error {
	account := &j.report.Account
	winner := 0
	for winner < len(group)-1 && j.deadLettered[group[winner].id] != nil {
		winner++
	}
	for i := range group {
		id := group[i].id
		switch {
		case i == winner:
			account.Stored++
			if p := j.deadLettered[id]; p != nil {
				p.sent = true
				j.report.find(j.finding(KindDeadLetter, group, id, "stored and dead-lettered as "+string(p.class)))
			}
		case j.matchDeadLettered(id, ""):
			account.DeadLettered++
		case j.pending(id):
			account.Pending++
			j.unseen = append(j.unseen, id)
		default:
			account.Duplicates++
			j.unseen = append(j.unseen, id)
		}
	}
	s, err := j.o.log.At(group[winner].place)
	if err != nil {
		return err
	}
	want := rowOf(&s)
	want.Faulty = j.seen.Rules.faulty(row.Device, row.TimeUS)
	diff := differences(&want, attributesOf(&s.Message), row)
	if len(diff) == 0 {
		return nil
	}
	for i := range group {
		s, err := j.o.log.At(group[i].place)
		if err != nil {
			return err
		}
		other := rowOf(&s)
		other.Faulty = want.Faulty
		if len(differences(&other, attributesOf(&s.Message), row)) == 0 {
			if j.followed(group[:i]) {
				j.o.first[group[i].id] = true
				return nil
			}
			j.report.find(j.finding(KindWinner, group, group[winner].id, "the row is that of entry "+group[i].id.String()))
			return nil
		}
	}
	for _, text := range diff {
		j.report.find(j.finding(KindField, group, group[winner].id, text))
	}
	return nil
}

// followed reports whether another entry may have come before those, since each of them
// was deferred or is a dead letter.
func (j *judge) followed(group []sentRecord) bool {
	return !slices.ContainsFunc(group, func(r sentRecord) bool { return !j.seen.Deferred[r.id] && j.deadLettered[r.id] == nil })
}

// absent judges entries whose row is not there.
func (j *judge) absent(group []sentRecord) {
	account := &j.report.Account
	for i := range group {
		switch id := group[i].id; {
		case j.matchDeadLettered(id, ""):
			account.DeadLettered++
		case j.pending(id):
			account.Pending++
		default:
			account.Lost++
			j.lost = append(j.lost, id)
			j.report.find(j.finding(KindLost, group, id, "no row, no dead letter, not pending"))
		}
	}
}

// refused judges entries that are no valid record.
func (j *judge) refused() error {
	account := &j.report.Account
	for _, r := range j.o.refused {
		switch {
		case j.matchDeadLettered(r.id, r.class):
			account.DeadLettered++
			if err := j.letter(r); err != nil {
				return err
			}
		case j.o.replays[r.id]:
			// The dead letter is gone once an operator has sent it again.
			account.DeadLettered++
		case j.pending(r.id):
			account.Pending++
		default:
			account.Lost++
			j.lost = append(j.lost, r.id)
			j.report.find(Finding{Kind: KindLost, Entry: r.id.String(), Text: "to be dead-lettered as " + string(r.class) + ", is neither that nor pending"})
		}
	}
	return nil
}

// matchDeadLettered reports whether an entry is a dead letter, and checks the reason.
func (j *judge) matchDeadLettered(id ID, want string) bool {
	p := j.deadLettered[id]
	if p == nil {
		return false
	}
	p.sent = true
	switch {
	case want == "":
		text := "a valid record was dead-lettered as " + string(p.class)
		if f := p.fields; f != nil {
			text += fmt.Sprintf(" after %d attempts from %s to %s: %s", f.Attempts, time.UnixMicro(f.FirstUS).UTC().Format("15:04:05.000"), time.UnixMicro(f.LastUS).UTC().Format("15:04:05.000"), f.Error)
		}
		j.report.find(Finding{Kind: KindDeadLetter, Entry: id.String(), Text: text})
	case p.class != want:
		j.report.find(Finding{Kind: KindDeadLetter, Entry: id.String(), Text: fmt.Sprintf("dead-lettered as %s, want %s", p.class, want)})
	}
	return true
}

func (j *judge) strayDeadLetters() {
	if j.seen.OthersToo {
		return
	}
	var stray []ID
	for id, p := range j.deadLettered {
		if !p.sent {
			stray = append(stray, id)
		}
	}
	slices.SortFunc(stray, ID.Compare)
	for _, id := range stray {
		j.report.find(Finding{Kind: KindDeadLetter, Entry: id.String(), Text: "dead-lettered, but never sent"})
	}
}

func (j *judge) pending(id ID) bool {
	return j.seen.Pending != nil && j.seen.Pending(id) || j.seen.Dispatched != nil && j.seen.Dispatched.Less(id)
}

func (j *judge) unexpected(row *Row) {
	j.report.find(Finding{Kind: KindUnexpected, Device: row.Device, Time: clock(row.TimeUS), Text: "a row that nobody sent"})
}

// others reports whether a row is to be passed over.
func (j *judge) others(device string) bool {
	if !j.seen.OthersToo {
		return false
	}
	_, ours := slices.BinarySearch(j.o.devices, device)
	return !ours
}

func (j *judge) finding(kind Kind, group []sentRecord, id ID, text string) Finding {
	return Finding{Kind: kind, Device: j.o.devices[group[0].device], Time: clock(group[0].timeUS), Entry: id.String(), Text: text}
}

// reader is the rows of positions with one row of foresight.
type reader struct {
	what   string
	next   func() (Row, error, bool)
	stop   func()
	others func(device string) bool
	row    Row
	more   bool
	begun  bool
}

// advance goes to the next row of ours, checks the order, and reports rows that
// are there twice.
func (r *reader) advance(j *judge) error {
	for {
		device, timeUS := r.row.Device, r.row.TimeUS
		row, err, more := r.next()
		if err != nil {
			return fmt.Errorf("read %s: %w", r.what, err)
		}
		if r.more = more; !more {
			return nil
		}
		c := cmp.Or(cmp.Compare(device, row.Device), cmp.Compare(timeUS, row.TimeUS))
		if r.begun && c > 0 {
			return fmt.Errorf("read %s: device %q at %s follows device %q at %s, want them ordered by device_id collate \"C\", ts",
				r.what, row.Device, clock(row.TimeUS), device, clock(timeUS))
		}
		double := r.begun && c == 0
		r.row, r.begun = row, true
		if r.others(row.Device) {
			continue
		}
		if !double {
			return nil
		}
		j.report.find(Finding{Kind: KindDouble, Device: row.Device, Time: clock(row.TimeUS), Text: "the row is there twice"})
	}
}

func (r *reader) before(device string, timeUS int64) bool {
	return cmp.Or(cmp.Compare(r.row.Device, device), cmp.Compare(r.row.TimeUS, timeUS)) < 0
}

func (r *reader) at(device string, timeUS int64) bool {
	return r.row.Device == device && r.row.TimeUS == timeUS
}
