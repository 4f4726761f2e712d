package config

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Delays is a list of at least one wait, separated by commas.
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

// String returns the list in the notation of UnmarshalText.
func (d Delays) String() string {
	words := make([]string, len(d))
	for i, wait := range d {
		words[i] = fmt.Sprint(wait)
	}
	return strings.Join(words, ",")
}
