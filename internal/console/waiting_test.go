package console_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

func TestWhatIsTriedAgainIsShownWithItsReason(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	p := dep.Run(servicetest.FourShards, "DLQ_RETRY_DELAYS=1h")
	p.AwaitReady()
	const all = 60
	var entries [][]string
	for i := range int64(all) {
		fields := servicetest.Record("unlucky", i)
		payload := &fields[len(fields)-1]
		*payload = strings.Replace(*payload, `"latitude":42.5`, `"latitude":"north"`, 1) // a newer version may read it
		entries = append(entries, fields)
	}
	dep.Publish(entries...)
	testenv.Wait(t, 20*time.Second, func() error {
		n, err := dep.Count("select count(*) from processor.deferred")
		if err == nil && n != all {
			err = fmt.Errorf("%d deferred", n)
		}
		return err
	})
	v := visit(t, p)
	shows := func(path string, want ...string) (page string) {
		testenv.Wait(t, 20*time.Second, func() error {
			page = v.get(path)
			for _, text := range want {
				if !regexp.MustCompile(text).MatchString(page) {
					return fmt.Errorf("%s does not show %s: %s", path, text, page)
				}
			}
			return nil
		})
		return page
	}
	const failing = `60 entries cannot be read and are tried again; they become dead letters after the last attempt at about \d\d:\d\d:\d\d UTC`
	shows("", failing, `href="/console/dead-letters/#deferred-list"[^>]*>deferred 60<`, `verdict warn`)
	page := shows("dead-letters/", failing, `50 of 60 entries that failed`, `There are no dead letters yet`, `href="/console/devices/\?device=unlucky"`, `latitude`)
	link := regexp.MustCompile(`href="/console/(dead-letters/deferred/[^"]*)"`).FindStringSubmatch(page)
	require.NotNil(t, link, page)
	shows(link[1], `at fault`, `&#34;latitude&#34;: &#34;north&#34;`, `device=unlucky`)
	shows("dead-letters/deferred/?entry=1-1", `no entry 1-1 waits for another attempt any more`)

	// They came again, after they were replayed.
	dep.Exec(`insert into processor.dead_letters (stream, group_name, dlq_id, source_id, digest, fields, class, error, fingerprint, attempts, instance, version, exported_by, replayed_as)
select stream, group_name, '1-1', entry_id, digest, fields, class, error, fingerprint, 3, instance, version, 'alice', '2-2' from processor.deferred`)
	require.NotContains(t, shows("dead-letters/", `60 of them came again, and were edited, replayed or dropped as dead letters before`), "they become dead letters")
	require.NotContains(t, shows("", `verdict ok`), "cannot be read")
}
