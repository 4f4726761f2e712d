package console

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/operator"
)

// holdActions are what operators hold back, and the replay of what the stream holds.
func holdActions() map[string]action {
	type run = func(ctx context.Context, f *operator.Fleet, j *job) error
	pause := func(title string, do func(f *operator.Fleet, ctx context.Context, shard *int, reason string) (operator.Held, error)) action {
		return action{start: func(r *http.Request) (string, run, error) {
			var shard *int
			reason, what := r.PostFormValue("reason"), title+" the fleet"
			if text := r.PostFormValue("shard"); text != "" {
				n, err := strconv.Atoi(text)
				if err != nil {
					return "", nil, errors.New("the shard is a number")
				}
				shard, what = &n, title+" shard "+text
			}
			return what, func(ctx context.Context, f *operator.Fleet, j *job) error {
				h, err := do(f, ctx, shard, reason)
				tellHeld(j, h)
				return err
			}, nil
		}}
	}
	drain := func(title string, do func(f *operator.Fleet, ctx context.Context, instance, reason string) (operator.Held, error)) action {
		return action{start: func(r *http.Request) (string, run, error) {
			instance, reason := r.PostFormValue("instance"), r.PostFormValue("reason")
			if instance == "" {
				return "", nil, errors.New("name the instance")
			}
			return title + " " + instance, func(ctx context.Context, f *operator.Fleet, j *job) error {
				h, err := do(f, ctx, instance, reason)
				tellHeld(j, h)
				return err
			}, nil
		}}
	}
	replay := func(dry bool) func(r *http.Request) (string, run, error) {
		return func(r *http.Request) (string, run, error) {
			from, to, err := windowOf(r.PostForm)
			if err == nil && from.IsZero() {
				err = errors.New("say since when")
			}
			if err != nil {
				return "", nil, err
			}
			o := operator.Replay{Since: from, Until: to, Device: r.PostFormValue("device"), DryRun: dry}
			title := "Replay the stream since " + from.UTC().Format(time.RFC3339)
			if dry {
				title = "Dry run: replay the stream since " + from.UTC().Format(time.RFC3339)
			}
			return title, func(ctx context.Context, f *operator.Fleet, j *job) error {
				o.Progress = func(done int, upTo time.Time) { j.progress(done, 0, "up to "+upTo.UTC().Format(time.RFC3339)) }
				out, err := f.ReplayEntries(ctx, o)
				j.progress(out.Entries, 0, "entries of "+cli.Count(out.Devices, "device"))
				if out.Incomplete {
					j.say("incomplete: the stream was trimmed, its oldest entry is of " + out.OldestKept.UTC().Format(time.RFC3339))
				}
				return err
			}, nil
		}
	}
	return map[string]action{
		"pause": pause("Pause", (*operator.Fleet).Pause), "resume": pause("Resume", (*operator.Fleet).Resume),
		"drain": drain("Drain", (*operator.Fleet).Drain), "undrain": drain("Undrain", (*operator.Fleet).Undrain),
		"replay": {start: replay(false)}, "replay-dry-run": {reads: true, start: replay(true)},
	}
}

func tellHeld(j *job, h operator.Held) {
	if !h.Changed {
		j.say("it was so before")
	}
	for _, x := range h.Holds {
		j.say(operator.HoldText(x))
	}
	if len(h.Holds) == 0 {
		j.say("nothing is held back")
	}
}
