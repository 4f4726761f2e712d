package config

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Delays is a list of waits, separated by commas; it has at least one.
type Delays []time.Duration

// UnmarshalText reads the list.
func (d *Delays) UnmarshalText(text []byte) error {
	var list Delays
	for word := range strings.SplitSeq(string(text), ",") {
		wait, err := time.ParseDuration(strings.TrimSpace(word))
		if err != nil {
			return errors.New("want durations, separated by commas")
		}
		list = append(list, wait)
	}
	*d = list
	return nil
}

// String is the list as it is written.
func (d Delays) String() string {
	words := make([]string, len(d))
	for i, wait := range d {
		words[i] = fmt.Sprint(wait)
	}
	return strings.Join(words, ",")
}
