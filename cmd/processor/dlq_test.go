package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// dlq is a stream with dead letters and the command line.
type dlq struct {
	*servicetest.Deployment
	client *redis.Client
	conn   *pgx.Conn
	dead   *stream.DeadLetters
}

func newDLQ(t *testing.T) *dlq {
	t.Helper()
	d := &dlq{Deployment: servicetest.New(t)}
	opts, err := redis.ParseURL(d.RedisURL)
	require.NoError(t, err)
	d.client = redis.NewClient(opts)
	t.Cleanup(func() { _ = d.client.Close() })
	d.conn, err = pgx.Connect(t.Context(), d.PostgresURL)
	require.NoError(t, err)
	t.Cleanup(func() { _ = d.conn.Close(context.Background()) })
	d.dead, err = stream.NewDeadLetters(d.client, stream.Config{Stream: d.Stream, Group: d.Group}, d.Stream+":dlq")
	require.NoError(t, err)
	return d
}

// call runs a command line in a process of its own.
func (d *dlq) call(args ...string) (code int, stdout, stderr string) {
	return d.callWith([]string{"EDITOR=/nonexistent"}, args...)
}

func (d *dlq) callWith(env []string, args ...string) (code int, stdout, stderr string) {
	p := servicetest.Spawn(d.T, d.Environ(append([]string{"SHARDS=8"}, env...)...), append([]string{"dlq"}, args...)...)
	code = p.Exit(time.Minute)
	return code, p.Output(), p.Errors()
}

func (d *dlq) json(into any, args ...string) int {
	d.T.Helper()
	code, out, errs := d.call(append(args, "--json")...)
	require.NoError(d.T, json.Unmarshal([]byte(out), into), "%s\n%s", out, errs)
	return code
}

func (d *dlq) count(sql string, args ...any) (n int) {
	d.T.Helper()
	require.NoError(d.T, d.conn.QueryRow(d.T.Context(), sql, args...).Scan(&n))
	return n
}

func TestAnOperatorFindsEditsAndReplaysDeadLetters(t *testing.T) {
	d := newDLQ(t)
	service := d.Run("SHARDS=8")
	service.AwaitReady()
	// Two with a latitude out of range, one of which has a number beyond 2^53.
	var entries [][]string
	for s := range int64(3) {
		j, err := fleet.NewJunk("latitude_range", fleet.DeviceID(1), time.Unix(1_700_000_000+s, 0))
		require.NoError(t, err)
		j.Fields[len(j.Fields)-1] = strings.Replace(j.Fields[len(j.Fields)-1], `"attributes":{`, `"attributes":{"78":{"__bigint":"9223372036854775807"},"id":9007199254740993,`, 1)
		entries = append(entries, j.Fields)
	}
	entries = append(entries, servicetest.MovingRecord(fleet.DeviceID(1), 100))
	ids, err := fleet.NewPublisher(d.client, d.Stream, 0).Publish(t.Context(), entries)
	require.NoError(t, err)
	testenv.Wait(t, time.Minute, func() error {
		if n := d.client.XLen(t.Context(), d.Stream+":dlq").Val(); n != 3 {
			return fmt.Errorf("%d dead letters", n)
		}
		return nil
	})

	var list []operator.DeadLetter
	require.Zero(t, d.json(&list, "list", "--class", "invalid", "--device", fleet.DeviceID(1), "--since", "1h", "--text", "latitude"))
	require.Len(t, list, 3)
	require.Equal(t, "payload.latitude", list[0].Field)
	require.False(t, *list[0].IsEdited)
	var kinds []operator.FailureGroup
	require.Zero(t, d.json(&kinds, "stats"))
	require.Equal(t, 3, kinds[0].Count)
	require.Zero(t, *kinds[0].Edited)
	require.Equal(t, "invalid/payload.latitude/range", kinds[0].Fingerprint)

	var shown operator.DeadLetter
	require.Zero(t, d.json(&shown, "show", ids[0].String()))
	require.Contains(t, shown.Fields[len(shown.Fields)-1].Value, "9007199254740993")
	require.Contains(t, shown.NowFails, "payload.latitude")

	// A dry run tells, and changes nothing.
	var report []operator.Retry
	require.Equal(t, fault.Finding, d.json(&report, "retry", "--class", "invalid", "--dry-run"))
	require.Len(t, report, 3)
	require.Equal(t, "refused", report[0].Outcome)

	for _, id := range ids[:2] {
		code, out, errs := d.call("edit", id.String(), "--set", "payload.latitude=48.25")
		require.Zero(t, code, errs)
		require.Contains(t, out, "decodes")
		require.Contains(t, out, "+ payload.latitude=48.25\n")
		require.NotContains(t, out, "longitude", "what did not change is not shown")
	}
	require.Zero(t, d.json(&list, "list"))
	require.Equal(t, []bool{true, true, false}, []bool{*list[0].IsEdited, *list[1].IsEdited, *list[2].IsEdited})
	require.Zero(t, d.json(&kinds, "stats"))
	require.Equal(t, 2, *kinds[0].Edited)
	_, out, _ := d.call("list")
	require.Regexp(t, `(?m)^\S+ +invalid +\d+ +\S+ +1 +edited +invalid`, out)
	require.Zero(t, d.json(&report, "retry", ids[0].String(), ids[1].String(), "--dry-run"))
	require.Equal(t, "stored", report[0].Outcome)
	require.Equal(t, 1, d.count("select count(*) from positions"))
	shown = operator.DeadLetter{}
	require.Zero(t, d.json(&shown, "show", ids[0].String()))
	require.Empty(t, shown.NowFails)
	require.JSONEq(t, `"9223372036854775807"`, string(attribute(t, shown.Record.Attributes, "78")))
	require.Equal(t, "9007199254740993", string(attribute(t, shown.Record.Attributes, "id")))

	require.Zero(t, d.json(&report, "retry", ids[1].String(), ids[0].String()))
	require.Equal(t, ids[0].String(), report[0].SourceID, "in the order of the entries")
	testenv.Wait(t, time.Minute, func() error {
		if n := d.count("select count(*) from positions"); n != 3 {
			return fmt.Errorf("%d positions", n)
		}
		return nil
	})
	require.Equal(t, 2, d.count("select count(*) from positions where latitude = 48.25 and (ts, ingested_at) in (($1, $2), ($3, $4))",
		time.Unix(1_700_000_000, 0), ids[0].Time(), time.Unix(1_700_000_001, 0), ids[1].Time()), "with their own stream time")
	require.Equal(t, 2, d.count("select count(*) from processor.dead_letters where edit_diff like '%48.25%' and replayed_as is not null and edited_fields <> fields"))

	// The third would come back, and is not sent.
	require.Equal(t, fault.Finding, d.json(&report, "retry", "--all"))
	require.Len(t, report, 1)
	require.Equal(t, "refused", report[0].Outcome)
	require.Contains(t, report[0].Reason, "latitude")
	require.EqualValues(t, 1, d.client.XLen(t.Context(), d.Stream+":dlq").Val())

	// Sent all the same it comes back, and says where it comes from.
	letter := report[0].ID
	require.Zero(t, d.json(&report, "retry", letter, "--unchecked"))
	testenv.Wait(t, time.Minute, func() error {
		if n := d.client.XLen(t.Context(), d.Stream+":dlq").Val(); n != 1 {
			return fmt.Errorf("%d dead letters", n)
		}
		return nil
	})
	shown = operator.DeadLetter{}
	require.Zero(t, d.json(&shown, "show", report[0].As))
	require.Equal(t, []string{letter, ids[2].String()}, []string{shown.ReplayOf, shown.FirstSource})
	require.Equal(t, 2, shown.Attempts, "they are counted on")

	// Dropping wants the count, and leaves a copy.
	code, _, errs := d.call("drop", "--class", "invalid", "--confirm", "3")
	require.Equal(t, fault.Finding, code)
	require.Contains(t, errs, "repeat with --confirm 1")
	code, _, _ = d.call("drop", "--confirm", "1")
	require.Equal(t, fault.Config, code, "without a filter nothing is meant")
	code, _, errs = d.call("drop", "--class", "invalid", "--confirm", "1")
	require.Zero(t, code, errs)
	require.Zero(t, d.client.XLen(t.Context(), d.Stream+":dlq").Val())
	require.Equal(t, 4, d.count("select count(*) from processor.dead_letters"))
	require.Equal(t, 5, d.count("select count(*) from processor.audit where action in ('dlq edit', 'dlq retry', 'dlq drop') and count > 0"))
	require.Zero(t, service.Terminate())
}

func attribute(t *testing.T, object json.RawMessage, name string) json.RawMessage {
	t.Helper()
	members := make(map[string]json.RawMessage)
	require.NoError(t, json.Unmarshal(object, &members), "%s", object)
	return bytes.TrimSpace(members[name])
}

// deadLetter makes dead letters of entries, one a second, and returns their IDs.
func (d *dlq) deadLetter(entries ...[]string) []telemetry.EntryID {
	d.T.Helper()
	for i, fields := range entries {
		l := telemetry.DeadLetter{
			Entry: telemetry.Entry{ID: telemetry.EntryID{Ms: uint64(1_700_000_000_000 + 1000*i)}, Fields: fields},
			Class: telemetry.ClassInvalid, Error: "invalid: payload.latitude: must be from -90 to 90", Field: "payload.latitude",
			Fingerprint: "invalid/payload.latitude/range", Attempts: 1, FirstFailed: time.Now(), LastFailed: time.Now(),
		}
		require.NoError(d.T, d.dead.DeadLetterDeferred(d.T.Context(), []telemetry.DeadLetter{l}, nil))
	}
	var ids []telemetry.EntryID
	for after := (telemetry.EntryID{}); ; after = ids[len(ids)-1] {
		list, err := d.dead.List(d.T.Context(), after, 1000)
		require.NoError(d.T, err)
		for i := range list {
			ids = append(ids, list[i].ID)
		}
		if len(list) == 0 {
			return ids
		}
	}
}

func TestNothingInADeadLetterActsUponATerminal(t *testing.T) {
	d := newDLQ(t)
	const hostile = "a\x1b]0;owned\x07\x1b[2J\r\u009b31m\u202e\u2066\u200b\u2028\x7f"
	id := d.deadLetter([]string{"device_id", hostile, "payload", hostile, hostile, "x"})[0]
	for _, args := range [][]string{
		{"list"},
		{"list", "--json"},
		{"show", id.String()},
		{"show", id.String(), "--json"},
		{"stats"},
		{"export"},
		{"retry", "--all", "--dry-run"},
		{"list", "--device", hostile + "x"},
	} {
		_, out, errs := d.call(args...)
		require.NotEmpty(t, out+errs)
		for _, r := range out + errs {
			require.False(t, r != '\n' && r != '\t' && unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl), "%v: %U in %q", args, r, out+errs)
		}
	}
	var list []operator.DeadLetter
	require.Zero(t, d.json(&list, "list"))
	require.Equal(t, hostile, list[0].Device, "a program reads what is there")
}

func TestADeadLetterIsCorrectedInAnEditor(t *testing.T) {
	d := newDLQ(t)
	j, err := fleet.NewJunk("latitude_range", fleet.DeviceID(1), time.Unix(1_700_000_000, 0))
	require.NoError(t, err)
	id := d.deadLetter(j.Fields)[0].String()
	payload := j.Fields[len(j.Fields)-1]
	edits := func() int { return d.count("select count(*) from processor.audit where action = 'dlq edit'") }
	for _, tt := range []struct {
		name, script string
		code, edits  int
		out, errs    string
		payload      string // that will be sent, "" for the one before
	}{
		{name: "leaves it as it is", script: `test "$(cat "$1")" != ""`, code: fault.Finding, errs: "nothing was changed"},
		{name: "fails after a change", script: `echo x > "$1"; exit 3`, code: fault.Finding, errs: "exit status 3; nothing is changed"},
		{name: "removes the file", script: `rm "$1"`, code: fault.Finding, errs: "edit: "},
		{name: "writes garbage", script: `printf '\000{' > "$1"`, edits: 1, out: "still: decode: payload", payload: "\x00{"},
		{
			name: "fixes, with an argument", script: `test "$1" = --wait && sed -i -e 's/^.*$/'"$GOOD"'/' "$2"`, edits: 2, out: "now it decodes",
			payload: strings.Replace(payload, "91.5", "48.25", 1),
		},
		{
			name: "adds a newline", script: `sed -i -e '$s/48.25/48.5/' "$1"; echo >> "$1"`, edits: 3, out: "48.5",
			payload: strings.Replace(payload, "91.5", "48.5", 1),
		},
	} {
		script := filepath.Join(t.TempDir(), "editor")
		require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\nset -e\n"+tt.script+"\n"), 0o700))
		editor := script
		if strings.Contains(tt.script, "--wait") {
			editor += " --wait"
		}
		good := strings.Replace(payload, "91.5", "48.25", 1)
		code, out, errs := d.callWith([]string{"EDITOR=" + editor, "GOOD=" + good}, "edit", id)
		require.Equal(t, tt.code, code, "%s: %s%s", tt.name, out, errs)
		require.Contains(t, out, tt.out, tt.name)
		require.Contains(t, errs, tt.errs, tt.name)
		require.Equal(t, tt.edits, edits(), tt.name)
		var shown operator.DeadLetter
		require.Zero(t, d.json(&shown, "show", id))
		require.Equal(t, payload, shown.Fields[len(shown.Fields)-1].Value, "the original is kept")
		if tt.payload != "" {
			require.Equal(t, tt.payload, shown.Edited[len(shown.Edited)-1].Value, tt.name)
		}
	}
	code, _, errs := d.callWith([]string{"EDITOR="}, "edit", id)
	require.Equal(t, fault.Config, code)
	require.Contains(t, errs, "EDITOR is not set")
}

func TestAnEditIsTakenBack(t *testing.T) {
	d := newDLQ(t)
	fields := servicetest.MovingRecord(fleet.DeviceID(1), 1)
	payload := fields[len(fields)-1]
	id := d.deadLetter(fields)[0].String()
	_, original, _ := d.call("export")
	edited := func() *string {
		var shown operator.DeadLetter
		require.Zero(t, d.json(&shown, "show", id))
		if shown.Edited == nil {
			return nil
		}
		return &shown.Edited[len(shown.Edited)-1].Value
	}
	set := []string{"edit", id, "--set", "payload.altitude=77"}
	from := func(lines string, want ...string) {
		t.Helper()
		var report []operator.EditOutcome
		require.Zero(t, d.json(&report, "edit", "--from-file", servicetest.File(t, lines)))
		for i, outcome := range want {
			require.Equal(t, outcome, report[i].Outcome)
		}
	}
	for _, name := range []string{"alone", "by a replacement", "of all that is selected"} {
		for _, before := range []bool{false, true} { // `dlq edit … && dlq retry …` can be run again
			var e operator.Edited
			require.Zero(t, d.json(&e, set...))
			require.Equal(t, before, e.Before)
			require.Contains(t, *edited(), "77")
		}
		from(original, "unchanged") // nobody touched that line
		require.Contains(t, *edited(), "77")
		_, _, errs := d.call("edit", "--from-file", servicetest.File(t, original))
		require.Contains(t, errs, "1 unchanged with the original fields: the edits before stay")
		switch name {
		case "of all that is selected":
			code, out, errs := d.call("edit", "--device", fleet.DeviceID(1), "--take-back")
			require.Zero(t, code, errs)
			require.Contains(t, out, "1 of 1 selected taken back")
			code, _, errs = d.call("edit", id, "--take-back")
			require.Equal(t, fault.Finding, code)
			require.Contains(t, errs, "none of the 1 selected is edited")
		case "alone":
			in := func(altitude string) string {
				return strings.Replace(original, `\"altitude\":0`, `\"altitude\":`+altitude, 1)
			}
			from(in("78")+in("77"), "edited", "edited")
			require.Contains(t, *edited(), "77", "the last line wins")
			code, out, errs := d.call("edit", id, "--payload-file", servicetest.File(t, payload))
			require.Zero(t, code, errs)
			require.Contains(t, out, "~ as it came")
		default:
			code, out, errs := d.call("edit", "--all", "--replace", `"altitude":77`, "--with", `"altitude":0`)
			require.Zero(t, code, errs)
			require.Contains(t, out, "~ as it came")
		}
		require.Nil(t, edited(), name)
	}
	require.Zero(t, d.count("select count(*) from processor.dead_letters where edited_at is not null or edit_diff is not null"))
	require.Equal(t, 8, d.count("select sum(count)::int from processor.audit where action = 'dlq edit'"))
	code, _, errs := d.call("retry", id)
	require.Zero(t, code, errs)
	sent := d.client.XRange(t.Context(), d.Stream, "-", "+").Val()
	require.Len(t, sent, 1)
	require.Equal(t, payload, sent[0].Values["payload"])
}

func TestARestorationThatFindsNothingSaysSo(t *testing.T) {
	d := newDLQ(t)
	d.deadLetter(servicetest.InvalidRecord("a", 1), servicetest.InvalidRecord("b", 2))
	for _, args := range [][]string{{"restore", "1-1"}, {"restore", "--device", "c"}, {"restore", "--class", "sink", "--dry-run"}} {
		code, _, errs := d.call(args...)
		require.Equal(t, fault.Finding, code, args)
		require.Contains(t, errs, "no dead letter matches")
	}
	code, _, errs := d.call("restore", "nonsense")
	require.Equal(t, fault.Config, code)
	require.Contains(t, errs, "want the form")
	var restored []operator.Restored
	require.Zero(t, d.json(&restored, "restore", "--all"), "of all there may be none")
	require.Empty(t, restored)

	code, _, errs = d.call("drop", "--all", "--confirm", "2")
	require.Zero(t, code, errs)
	code, _, errs = d.call("restore", "1700000000000", "1-1", "--json") // the short form of 1700000000000-0
	require.Zero(t, code, errs)
	require.Contains(t, errs, "has the ID 1-1,")
	require.EqualValues(t, 1, d.client.XLen(t.Context(), d.Stream+":dlq").Val())
}

func TestATextIsReplacedInAllThatAFilterSelects(t *testing.T) {
	testenv.Slow(t)
	d := newDLQ(t)
	var entries [][]string
	for s := range int64(120) {
		j, err := fleet.NewJunk("latitude_range", fleet.DeviceID(1), time.Unix(1_700_000_000+s, 0))
		require.NoError(t, err)
		entries = append(entries, j.Fields)
	}
	d.deadLetter(entries...)
	edited := func() int {
		return d.count("select count(*) from processor.dead_letters where edited_fields is not null and fields <> edited_fields")
	}
	audited := func() int { return d.count("select count(*) from processor.audit where action = 'dlq edit'") }
	var r operator.Replaced
	require.Zero(t, d.json(&r, "edit", "--class", "invalid", "--replace", `"latitude":9(\d)`, "--with", `"latitude":4$1`, "--regexp", "--dry-run"))
	require.Equal(t, []any{true, 120, 120, 120}, []any{r.DryRun, r.Selected, r.Edited, r.Decode})
	require.Len(t, r.Samples, 5)
	require.Equal(t, "- payload.latitude=91.5\n+ payload.latitude=41.5", r.Samples[0].Diff)
	require.Zero(t, edited()+audited(), "a dry run changes nothing")
	code, out, errs := d.call("edit", "--class", "invalid", "--replace", `"latitude":91`, "--with", `"latitude":92`)
	require.Zero(t, code, errs)
	require.Contains(t, out, "120 of 120 edited, and 0 of these decode now")
	require.Contains(t, out, "still: ")
	code, out, errs = d.call("edit", "--all", "--replace", `"latitude":92`, "--with", `"latitude":42`)
	require.Zero(t, code, errs)
	require.Contains(t, out, "120 of 120 edited, and 120 of these decode now", "what was edited before is edited further")
	require.Equal(t, 120, edited())
	require.Equal(t, 2, audited(), "one row for each")
	require.Equal(t, 2, d.count("select count(*) from processor.audit where action = 'dlq edit' and count = 120 and detail->>'filter' like '%replace%'"))
	for want, args := range map[string][]string{
		"nothing was changed":                 {"edit", "--all", "--replace", "nowhere", "--with", "x"},
		"the syntax is RE2's":                 {"edit", "--all", "--replace", "(", "--with", "x", "--regexp"},
		"specify IDs, a filter or --all":      {"edit", "--replace", "a", "--with", "x"},
		"--replace needs --with":              {"edit", "--all", "--replace", "a"},
		"--with, --regexp and --dry-run need": {"edit", "--class", "invalid"},
		"no dead letter matches class=sink":   {"edit", "--class", "sink", "--replace", "a", "--with", "x"},
	} {
		code, _, errs := d.call(args...)
		require.NotZero(t, code, args)
		require.Contains(t, errs, want, args)
	}
}

func TestManyDeadLettersAreCorrectedFromAFile(t *testing.T) {
	testenv.Slow(t)
	d := newDLQ(t)
	var entries [][]string
	for s := range int64(250) {
		j, err := fleet.NewJunk("latitude_range", fleet.DeviceID(1), time.Unix(1_700_000_000+s, 0))
		require.NoError(t, err)
		entries = append(entries, append(j.Fields, "raw", "\xff\x00"))
	}
	ids := d.deadLetter(entries...)
	exported, editedFile := filepath.Join(t.TempDir(), "all.jsonl"), filepath.Join(t.TempDir(), "edited.jsonl")
	code, _, errs := d.call("export", "--file", exported)
	require.Zero(t, code, errs)
	text, err := os.ReadFile(exported)
	require.NoError(t, err)
	lines := strings.SplitAfter(string(text), "\n")
	for i := range lines[:249] { // the last one is left as it is
		lines[i] = strings.Replace(lines[i], `\"latitude\":91.5`, `\"latitude\":9007199254740993e-15`, 1)
	}
	lines[0] = strings.Replace(lines[0], "9007199254740993e-15", "92", 1)
	gone := strings.Replace(lines[1], ids[1].String(), "1-1", 1)
	require.NoError(t, os.WriteFile(editedFile, []byte(strings.Join(append(lines, gone), "")), 0o600))

	var report []operator.EditOutcome
	require.Equal(t, fault.Finding, d.json(&report, "edit", "--from-file", editedFile), "one is gone")
	require.Len(t, report, 251)
	require.Equal(t, "edited", report[0].Outcome)
	require.Contains(t, report[0].NowFails, "payload.latitude")
	require.Equal(t, operator.EditOutcome{ID: ids[248].String(), Outcome: "edited"}, report[248])
	require.Equal(t, "unchanged", report[249].Outcome)
	require.Equal(t, operator.EditOutcome{ID: "1-1", Outcome: "gone"}, report[250])
	require.Equal(t, 249, d.count("select count(*) from processor.dead_letters where edited_fields is not null and fields <> edited_fields"))
	require.Equal(t, 249, d.count("select sum(count)::int from processor.audit where action = 'dlq edit'"))
	var shown operator.DeadLetter
	require.Zero(t, d.json(&shown, "show", ids[100].String()))
	require.Contains(t, shown.Edited[3].Value, "9007199254740993e-15", "every digit is kept")
	require.Equal(t, operator.Field{Name: "raw", Value: "/wA=", Base64: true}, shown.Edited[4])

	for _, args := range [][]string{{"edit"}, {"edit", ids[0].String(), "--from-file", editedFile}, {"edit", "--from-file", editedFile, "--set", "codec=8"}} {
		code, _, errs = d.call(args...)
		require.Equal(t, fault.Config, code, errs)
	}
	code, _, errs = d.call("edit", "--from-file", servicetest.File(t, "no JSON"))
	require.Equal(t, fault.Finding, code)
	require.Contains(t, errs, "read edited dead letters")
}

func TestAFilterThatMatchesNothingIsSaid(t *testing.T) {
	d := newDLQ(t)
	code, out, errs := d.call("list")
	require.Equal(t, []any{fault.Clean, "", "there are no dead letters\n"}, []any{code, out, errs}, "which is as it should be")
	code, out, errs = d.call("retry", "--all", "--json")
	require.Equal(t, []any{fault.Clean, "[]\n", "there are no dead letters\n"}, []any{code, out, errs})
	d.deadLetter(servicetest.MovingRecord(fleet.DeviceID(1), 1))
	file := filepath.Join(t.TempDir(), "none.jsonl")
	for _, tt := range []struct {
		args []string
		json string
	}{
		{[]string{"list"}, "[]\n"},
		{[]string{"stats"}, "[]\n"},
		{[]string{"export"}, ""},
		{[]string{"export", "--file", file}, ""},
		{[]string{"retry"}, "[]\n"},
		{[]string{"retry", "--dry-run"}, "[]\n"},
		{[]string{"drop", "--confirm", "0"}, `{"dropped":0}` + "\n"},
	} {
		code, out, errs := d.call(append(tt.args, "--device", "nobody", "--json")...)
		require.Equal(t, fault.Finding, code, "%v", tt.args)
		require.Equal(t, tt.json, out, "%v", tt.args)
		require.Contains(t, errs, "no dead letter matches device=nobody; processor dlq stats", "%v", tt.args)
	}
	require.NoFileExists(t, file)
	var list []operator.DeadLetter
	require.Zero(t, d.json(&list, "list"))
	code, _, errs = d.call("retry", "--dry-run", list[0].ID, "5-5")
	require.Zero(t, code)
	require.Contains(t, errs, "no dead letter has the ID 5-5, nor was it the entry 5-5")
	require.NotContains(t, errs, list[0].ID, "one that is there is not named, by whichever ID")
	code, _, errs = d.call("edit", "1-1", "--set", "codec=8")
	require.Equal(t, fault.Finding, code)
	require.Contains(t, errs, "no dead letter has the ID 1-1")
	code, out, errs = d.call("edit", "--from-file", servicetest.File(t, ""), "--json")
	require.Equal(t, []any{fault.Finding, "[]\n"}, []any{code, out})
	require.Contains(t, errs, "has no dead letters")
	require.Zero(t, d.count("select count(*) from processor.audit"))
}

func TestAReplayWaitsWhileTheServiceHasTooMuchToDo(t *testing.T) {
	t.Run("known", func(t *testing.T) { replayWaits(t, false, "waiting: 3 entries in the backlog") })
	t.Run("unknown", func(t *testing.T) { replayWaits(t, true, "waiting: at most 3 entries in the backlog") })
}

// replayWaits requires that a replay waits for three entries, of which the group may not know how many it has read.
func replayWaits(t *testing.T, unknown bool, want string) {
	t.Helper()
	d := newDLQ(t)
	d.deadLetter(servicetest.MovingRecord(fleet.DeviceID(1), 1), servicetest.MovingRecord(fleet.DeviceID(1), 2))
	require.NoError(t, d.client.XGroupCreateMkStream(t.Context(), d.Stream, d.Group, "0").Err())
	pub := fleet.NewPublisher(d.client, d.Stream, 0)
	ids, err := pub.Publish(t.Context(), [][]string{servicetest.MovingRecord(fleet.DeviceID(2), 1), servicetest.MovingRecord(fleet.DeviceID(2), 2), servicetest.MovingRecord(fleet.DeviceID(2), 3)})
	require.NoError(t, err)
	if unknown {
		require.NoError(t, d.client.XGroupSetID(t.Context(), d.Stream, d.Group, ids[1].String()).Err())
	}
	p := servicetest.Spawn(t, d.Environ("SHARDS=8"), "dlq", "retry", "--all", "--pause-at", "3")
	testenv.Wait(t, 30*time.Second, func() error {
		if !strings.Contains(p.Errors(), want) {
			return fmt.Errorf("it says %q", p.Errors())
		}
		return nil
	})
	require.EqualValues(t, 3, d.client.XLen(t.Context(), d.Stream).Val())
	require.EqualValues(t, 2, d.client.XLen(t.Context(), d.Stream+":dlq").Val())
	require.NoError(t, d.client.Do(t.Context(), "xgroup", "setid", d.Stream, d.Group, "$", "entriesread", 3).Err())
	require.Zero(t, p.Exit(30*time.Second), p.Errors())
	require.EqualValues(t, 5, d.client.XLen(t.Context(), d.Stream).Val())
}

func TestAReplayThatIsInterruptedGoesOnWhereItEnded(t *testing.T) {
	d := newDLQ(t)
	var letters []telemetry.DeadLetter
	for n := range 40 {
		letters = append(letters, telemetry.DeadLetter{
			Entry: telemetry.Entry{ID: telemetry.EntryID{Ms: uint64(1_700_000_000_000 + n)}, Fields: servicetest.MovingRecord(fleet.DeviceID(n%3), int64(n))},
			Class: telemetry.ClassSink, Error: "sink", Fingerprint: "sink", FirstFailed: time.Now(), LastFailed: time.Now(),
		})
	}
	for i := range letters { // in the wrong order
		require.NoError(t, d.dead.DeadLetterDeferred(t.Context(), []telemetry.DeadLetter{letters[(i*7)%40]}, nil))
	}
	p := servicetest.Spawn(t, d.Environ("SHARDS=8"), "dlq", "retry", "--class", "sink", "--rate", "20")
	testenv.Wait(t, 30*time.Second, func() error {
		if n := d.client.XLen(t.Context(), d.Stream).Val(); n < 5 {
			return fmt.Errorf("%d sent", n)
		}
		return nil
	})
	p.Signal(os.Interrupt)
	require.Equal(t, fault.Finding, p.Exit(20*time.Second))
	require.Contains(t, p.Errors(), "interrupted")
	sent := d.client.XLen(t.Context(), d.Stream).Val()
	require.Less(t, sent, int64(40))
	require.Equal(t, 40-sent, d.client.XLen(t.Context(), d.Stream+":dlq").Val())
	code, _, errs := d.call("retry", "--class", "sink", "--rate", "10000")
	require.Zero(t, code, errs)

	all := d.client.XRange(t.Context(), d.Stream, "-", "+").Val()
	require.Len(t, all, 40)
	for i, m := range all {
		require.Equal(t, letters[i].Entry.ID.String(), m.Values[telemetry.FieldReplayOf])
	}
	require.Equal(t, 40, d.count("select count(*) from processor.dead_letters where replayed_as is not null"))
	require.Equal(t, 40, d.count("select sum(count)::int from processor.audit where action = 'dlq retry'"))
}

// What was sent is noted while a slow replay goes on: a restoration would bring it back.
func TestAReplayThatIsKilledLeavesNothingToRestore(t *testing.T) {
	d := newDLQ(t)
	d.deadLetter(servicetest.RecordsOfMany(0, 3)...)
	p := servicetest.Spawn(t, d.Environ("SHARDS=8"), "dlq", "retry", "--all", "--rate", "0.1")
	testenv.Wait(t, 30*time.Second, func() error {
		if n := d.count("select count(*) from processor.dead_letters where replayed_as is not null"); n == 0 {
			return fmt.Errorf("%d sent, none noted", d.client.XLen(t.Context(), d.Stream).Val())
		}
		return nil
	})
	require.EqualValues(t, 1, d.client.XLen(t.Context(), d.Stream).Val())
	require.NoError(t, p.Kill())
	p.Exit(20 * time.Second)
	var restored []operator.Restored
	require.Zero(t, d.json(&restored, "restore", "--all"))
	require.Equal(t, []string{"present", "present"}, []string{restored[0].Outcome, restored[1].Outcome})
	require.EqualValues(t, 2, d.client.XLen(t.Context(), d.Stream+":dlq").Val())
}
