package config

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// maxStreams bounds the streams of one instance: each has a dispatcher, workers and
// connections of its own. More are divided among deployments.
const maxStreams = 64

// rangeOf matches the short form {0..7}.
var rangeOf = regexp.MustCompile(`\{(\d+)\.\.(\d+)\}`)

// Streams returns the names that the variable lists.
func (c Redis) Streams() []string {
	names, _ := splitStreams(c.Stream)
	return names
}

// splitStreams returns the names of a list, and what is wrong with it.
func splitStreams(text string) (names []string, problem string) {
	for name := range strings.SplitSeq(text, ",") {
		if name == "" {
			return nil, "must list names separated by commas, and one of them is empty"
		}
		at := rangeOf.FindAllStringSubmatchIndex(name, -1)
		if len(at) == 0 {
			names = append(names, name)
			continue
		}
		m := at[0]
		first, errFirst := strconv.Atoi(name[m[2]:m[3]])
		last, errLast := strconv.Atoi(name[m[4]:m[5]])
		switch {
		case len(at) > 1:
			return nil, "has a name with more than one range"
		case errFirst != nil || errLast != nil || first > last:
			return nil, "has a range whose begin is behind its end; want a form such as telemetry:{0..7}"
		case last-first >= maxStreams:
			return nil, fmt.Sprintf("must name at most %d streams, since each needs a dispatcher, workers and connections of its own: divide them among several deployments", maxStreams)
		}
		for n := first; n <= last; n++ {
			names = append(names, fmt.Sprintf("%s%0*d%s", name[:m[0]], m[3]-m[2], n, name[m[1]:]))
		}
	}
	if len(names) > maxStreams {
		return nil, fmt.Sprintf("must name at most %d streams, since each needs a dispatcher, workers and connections of its own: divide them among several deployments", maxStreams)
	}
	return names, ""
}

// hasTag reports whether a Cluster hashes a part of a name instead of all of it.
func hasTag(name string) bool {
	at := strings.IndexByte(name, '{')
	return at >= 0 && strings.IndexByte(name[at:], '}') > 1
}

// checkStreams checks the list, and that no stream has the name of a key of another one.
func (c *Redis) checkStreams(r *report) {
	const variable = "REDIS_TELEMETRY_STREAM"
	words := strings.Split(c.Stream, ",")
	for i := range words {
		words[i] = strings.Trim(words[i], " ")
	}
	if len(words) > 1 {
		c.Stream = strings.Join(words, ",")
	}
	names, problem := splitStreams(c.Stream)
	if problem != "" {
		r.add(variable, c.Stream, "%s", problem)
		return
	}
	if c.URL.Cluster() {
		for _, name := range names {
			if strings.Contains(name, "}") && !hasTag(name) {
				r.add(variable, name, "must have a {hash tag} or no closing brace: on a Redis Cluster scripts need its other keys in the same slot")
			}
		}
	}
	if len(names) == 1 {
		c.Stream = names[0]
		return
	}
	if c.DLQStream != "" {
		r.add("REDIS_DLQ_STREAM", c.DLQStream, "must be unset with several streams: the dead letters of each have a stream of their own, NAME:dlq; "+
			"replay or drop first what is in this one (REDIS_TELEMETRY_STREAM=NAME processor dlq list, with it still set): no list, retention or removal looks there afterwards")
	}
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			r.add(variable, name, "is listed twice")
			continue
		}
		if len(name) > maxName {
			r.add(variable, name, "must be at most %d bytes", maxName)
		}
		if name == c.RecomputeStream || name == c.TimingStream {
			r.add(variable, name, "must differ from RECOMPUTE_STREAM and TIMING_STREAM")
		}
		for j, other := range names {
			keys := "{" + other + "}:" + c.Group + ":"
			if hasTag(other) {
				keys = other + ":" + c.Group + ":"
			}
			switch {
			case i == j:
			case name == c.deadLettersOf(other):
				r.add(variable, name, "is the stream of the dead letters of %s, which would be read as telemetry", other)
			case strings.HasPrefix(name, keys):
				r.add(variable, name, "has the name of a key that the group keeps for %s", other)
			}
		}
	}
	for _, name := range names {
		if d := c.deadLettersOf(name); d == c.RecomputeStream || d == c.TimingStream {
			r.add("RECOMPUTE_STREAM", d, "must differ from the stream of dead letters of %s, and TIMING_STREAM too", name)
		}
	}
}

// NamesOf returns the names of streams that were given one by one or as lists, each once.
func NamesOf(texts []string) (names []string, err error) {
	var r report
	for _, text := range texts {
		list, problem := splitStreams(text)
		if problem != "" {
			r.add("STREAM", text, "%s", problem)
		}
		for _, name := range list {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names, r.err()
}

// CheckBeside returns why a stream cannot be processed beside others by one fleet: its name is
// a key of another one, or does not fit a Cluster.
func (c Redis) CheckBeside(name string, others []string) error {
	var r report
	explicit := c.DLQStream
	if names := c.Streams(); len(names) == 1 && explicit == c.deadLettersOf(names[0]) {
		explicit = ""
	}
	for _, other := range others {
		two := c
		two.Stream, two.DLQStream = other+","+name, explicit
		if other == name {
			two.Stream = name
		}
		before := len(r.problems)
		two.checkStreams(&r)
		two.checkNames(&r)
		if len(r.problems) > before {
			break // the same is wrong beside the next
		}
	}
	return r.err()
}

// workersOf returns the workers of each of so many streams.
func (p Pipeline) workersOf(streams int) int { return (p.Workers + streams - 1) / streams }

// PerStream returns the configuration of each stream: its names, and its share of what one
// instance may hold. With one stream that is the configuration itself.
func (c Config) PerStream() []Config {
	names := c.Redis.Streams()
	if len(names) <= 1 {
		return []Config{c}
	}
	n := len(names)
	list := make([]Config, n)
	for i, name := range names {
		one := c
		one.Redis = c.Redis.Of(name, c.Redis.Group)
		p := &one.Pipeline
		p.Workers = c.Pipeline.workersOf(n)
		p.MaxInFlightRecords /= n
		p.MaxInFlightBytes /= int64(n)
		p.StateMaxDevices = max(1, p.StateMaxDevices/n)
		p.ReadBatchRecords = min(p.ReadBatchRecords, p.MaxInFlightRecords)
		p.BatchMaxRecords = min(p.BatchMaxRecords, p.MaxInFlightRecords)
		list[i] = one
	}
	return list
}

// ForStream returns the configuration of one of the streams; without a name, of the only
// one.
func (c Config) ForStream(name string) (Config, error) {
	all := c.PerStream()
	if name == "" && len(all) == 1 {
		return all[0], nil
	}
	for _, one := range all {
		if one.Redis.Stream == name {
			return one, nil
		}
	}
	problem := Problem{Variable: "REDIS_TELEMETRY_STREAM", Value: c.Redis.Stream, Rule: cmp.Or(
		map[bool]string{true: "lists several streams: say which one with --stream"}[name == ""], fmt.Sprintf("does not list the stream %q of --stream", name))}
	return c, &Error{Problems: []Problem{problem}}
}
