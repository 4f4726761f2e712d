package operator

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/trmtracking/processor/internal/telemetry"
)

// member is one member of a JSON object and where its value is in the text.
type member struct {
	name     string
	from, to int
}

var errNoObject = errors.New("the payload is not a JSON object; use --payload-file")

// membersOf returns the members of a JSON object as they stand in its text, and
// where the text of the object ends.
func membersOf(object json.RawMessage) (list []member, end int, err error) {
	if !json.Valid(object) {
		return nil, 0, errNoObject
	}
	d := json.NewDecoder(bytes.NewReader(object))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, 0, errNoObject
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, 0, err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, 0, err
		}
		to := int(d.InputOffset())
		list = append(list, member{fmt.Sprint(name), to - len(value), to})
	}
	if _, err := d.Token(); err != nil {
		return nil, 0, err
	}
	return list, int(d.InputOffset()) - 1, nil
}

// setMember changes one member of a JSON object and leaves all other text as it
// is: every digit, every space, the order of the members. A new one is the last.
func setMember(object json.RawMessage, path []string, value json.RawMessage) (json.RawMessage, error) {
	if len(path) == 0 {
		if !json.Valid(value) {
			return nil, fmt.Errorf("%s is not JSON; text needs quotes", value)
		}
		return value, nil
	}
	if len(object) == 0 {
		object = json.RawMessage("{}")
	}
	list, end, err := membersOf(object)
	if err != nil {
		return nil, err
	}
	var at *member
	for i := range list {
		if list[i].name == path[0] {
			at = &list[i] // the last one of a name counts
		}
	}
	if at != nil {
		changed, err := setMember(object[at.from:at.to], path[1:], value)
		if err != nil {
			return nil, err
		}
		return slices.Concat(object[:at.from], changed, object[at.to:]), nil
	}
	added, err := setMember(nil, path[1:], value)
	if err != nil {
		return nil, err
	}
	name, err := json.Marshal(path[0])
	if err != nil {
		return nil, err
	}
	after, separator := end, ""
	if len(list) > 0 {
		after, separator = list[len(list)-1].to, ","
	}
	return slices.Concat(object[:after], []byte(separator), name, []byte(":"), added, object[after:]), nil
}

// difference returns what an edit changed: fields, and of a field that is a JSON
// object the members that are not what they were, wherever they stand.
func difference(old, changed []string) string {
	var b strings.Builder
	was, is := telemetry.Entry{Fields: old}, telemetry.Entry{Fields: changed}
	for i := 0; i+1 < len(old); i += 2 {
		if _, ok := is.Field(old[i]); !ok {
			fmt.Fprintf(&b, "- %s=%s\n", old[i], old[i+1])
		}
	}
	for i := 0; i+1 < len(changed); i += 2 {
		before, ok := was.Field(changed[i])
		switch {
		case !ok:
			fmt.Fprintf(&b, "+ %s=%s\n", changed[i], changed[i+1])
		case before != changed[i+1]:
			n := b.Len()
			differ(&b, changed[i], json.RawMessage(before), json.RawMessage(changed[i+1]))
			if b.Len() == n {
				fmt.Fprintf(&b, "~ %s: only spaces or the order of its members\n", changed[i])
			}
		}
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// differ writes the difference between two values of a name.
func differ(b *strings.Builder, name string, old, changed json.RawMessage) {
	was, _, err := membersOf(old)
	is, _, err2 := membersOf(changed)
	if err != nil || err2 != nil {
		if !sameJSON(old, changed) {
			fmt.Fprintf(b, "- %s=%s\n+ %s=%s\n", name, old, name, changed)
		}
		return
	}
	last := func(list []member, name string) int {
		for i, m := range slices.Backward(list) {
			if m.name == name {
				return i
			}
		}
		return -1
	}
	for i, m := range was {
		if last(was, m.name) != i {
			continue
		}
		if j := last(is, m.name); j < 0 {
			fmt.Fprintf(b, "- %s.%s=%s\n", name, m.name, old[m.from:m.to])
		} else {
			differ(b, name+"."+m.name, old[m.from:m.to], changed[is[j].from:is[j].to])
		}
	}
	for i, m := range is {
		if last(is, m.name) == i && last(was, m.name) < 0 {
			fmt.Fprintf(b, "+ %s.%s=%s\n", name, m.name, changed[m.from:m.to])
		}
	}
}

// sameJSON reports whether two values are the same text apart from spaces.
func sameJSON(a, b json.RawMessage) bool {
	var x, y bytes.Buffer
	return bytes.Equal(a, b) || json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}
