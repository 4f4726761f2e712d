package oracle

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/trmtracking/processor/loadtest/fleet"
)

// LetterFields are what a dead letter says about its entry besides the class.
type LetterFields struct {
	Sum         [32]byte // of the entry's names and values, as fleet.SumOf computes it
	Shard       int
	Attempts    int
	Error       string
	Field       string // at fault
	Fingerprint string
	Instance    string
	FirstUS     int64 // when it failed first
	LastUS      int64
}

// LetterRules are what the fields of dead letters depend on.
type LetterRules struct {
	Shards      Shards
	MaxAttempts int // to decode or store an entry
}

// Refusal is a time in which the database refuses the records of a device, or of all: then
// some are deferred until it shows, and none is given up.
type Refusal struct {
	Device       string // "" is all
	FromUS, ToUS int64
}

// sink is the class of a record that the database refuses.
const sink = "sink"

// refusedSlack is how much later an instance may note that a record was refused: it may
// have been frozen.
const refusedSlack = 15 * time.Second

// refuses reports whether a record of a device was refused at a moment.
func (o *Observed) refuses(device string, atUS int64) bool {
	return slices.ContainsFunc(o.Refused, func(r Refusal) bool {
		return r.Device == device && atUS >= r.FromUS && atUS <= r.ToUS+refusedSlack.Microseconds()
	})
}

// Rejection is a valid record that was deferred as one that the database rejects.
type Rejection struct {
	ID   ID
	AtUS int64
}

// rejections finds records that were taken for the fault, though the database was away or
// failed for all.
func (j *judge) rejections() {
	if len(j.seen.Rejections) == 0 {
		return
	}
	at := make(map[ID][]int64)
	for _, r := range j.seen.Rejections {
		at[r.ID] = append(at[r.ID], r.AtUS)
	}
	for _, r := range j.o.records {
		device := j.o.devices[r.device]
		for _, us := range at[r.id] {
			if !j.seen.refuses(device, us) && !j.seen.refuses("", us) {
				j.report.find(Finding{Kind: KindAttempt, Device: device, Entry: r.id.String(), Text: "deferred as a record that the database rejects, which it did not"})
			}
		}
	}
}

// giveUp makes refused entries of the records that were refused for so long, after they
// were deferred, that they are dead letters: no row of them is stored.
func (j *judge) giveUp() {
	j.o.records = slices.DeleteFunc(j.o.records, func(r sentRecord) bool {
		l, device := j.deadLettered[r.id], j.o.devices[r.device]
		if l == nil || l.class != sink || l.fields == nil || !j.seen.Deferred[r.id] ||
			!j.seen.refuses(device, l.fields.FirstUS) || !j.seen.refuses(device, l.fields.LastUS) {
			return false
		}
		j.o.refused = append(j.o.refused, sentRefused{id: r.id, place: r.place, class: sink})
		return true
	})
}

// junkFields names what is at fault in each kind of made-up junk.
var junkFields = map[string]string{
	"not_json":         "payload",
	"truncated":        "payload",
	"wrong_type":       "payload.latitude",
	"missing_field":    "payload.longitude",
	"unknown_sentinel": `payload.attributes["78"]`,
	"no_payload":       "payload",
	"latitude_range":   "payload.latitude",
	"priority_range":   "payload.priority",
	"time_range":       "payload.timestamp",
	"device_mismatch":  "payload.device_id",
	"nul":              `payload.attributes["note"]`,
	"huge":             "payload",
}

// clockSlack is how far the clocks of Redis and of an instance may be apart.
const clockSlack = time.Minute

// letter compares the fields of a dead letter with those that its entry asks for.
func (j *judge) letter(r sentRefused) error {
	l := j.deadLettered[r.id]
	if j.seen.Letters == nil || l.fields == nil {
		return nil
	}
	s, err := j.o.log.At(r.place)
	if err != nil {
		return err
	}
	for _, text := range j.seen.Letters.differences(&s, r, l.fields) {
		j.report.find(Finding{Kind: KindDeadLetter, Entry: r.id.String(), Device: s.Message.DeviceID, Text: text})
	}
	return nil
}

func (rules *LetterRules) differences(s *fleet.Sent, r sentRefused, got *LetterFields) []string {
	var d []string
	field := func(name string, same bool, want, is any) {
		if !same {
			d = append(d, fmt.Sprintf("%s of the dead letter: want %v, got %v", name, want, is))
		}
	}
	if s.Sum != [32]byte{} {
		field("entry", s.Sum == got.Sum, fmt.Sprintf("%x", s.Sum[:6]), fmt.Sprintf("%x", got.Sum[:6]))
	}
	shard := 0 // of an entry without a device
	if s.Message.DeviceID != "" {
		shard = shardOf(s.Message.DeviceID, rules.Shards(got.LastUS))
	}
	field("shard", got.Shard == shard, shard, got.Shard)
	attempts := 1 // nothing makes it a record
	if r.class == "decode" || r.class == sink {
		attempts = rules.MaxAttempts
	}
	field("attempts", got.Attempts == attempts, attempts, got.Attempts)
	if want, known := junkFields[s.Junk]; known {
		field("field", got.Field == want, want, got.Field)
	}
	if r.class == sink {
		field("error", strings.Contains(got.Error, "SQLSTATE"), "… SQLSTATE …", got.Error)
	} else {
		field("error", strings.HasPrefix(got.Error, r.class+": "+got.Field+": "), r.class+": "+got.Field+": …", got.Error)
	}
	field("fingerprint", strings.HasPrefix(got.Fingerprint, r.class+"/"), r.class+"/…", got.Fingerprint)
	field("instance", got.Instance != "", "one", "none")
	of := cmp.Or(ID(s.ReplayOf), r.id)
	field("first failure", got.FirstUS >= int64(of.Ms)*1000-clockSlack.Microseconds(), "after "+clock(int64(of.Ms)*1000), clock(got.FirstUS))
	field("last failure", got.LastUS >= got.FirstUS, "after "+clock(got.FirstUS), clock(got.LastUS))
	return d
}
