package store

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// Tables that others write may hold times that no record has: infinite ones, years before
// the first and beyond 9999. Derivation leaves out positions of such times, see exclusion;
// as the end of a span they are open, or nothing is within it; elsewhere they are shown as
// the nearest time that Go and JSON have. None fails a query, since that would be of all
// rows.

// The ends of device time: times beyond them are rejected on arrival.
var (
	firstUS = time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	lastUS  = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
)

// The same in SQL.
const (
	firstTime = `'0001-01-01 00:00:00+00'::timestamptz`
	lastTime  = `'9999-01-01 00:00:00+00'::timestamptz`
)

// endsOf are two columns as the ends of a span: one that is open, or beyond what RFC 3339
// can say, is infinite. See usOf.
func endsOf(from, to string) string {
	return fmt.Sprintf(`
  case when %[1]s > %[4]s then 'infinity' when %[1]s >= %[3]s then %[1]s else '-infinity' end,
  case when %[2]s < %[3]s then '-infinity' when %[2]s <= %[4]s then %[2]s else 'infinity' end`,
		from, to, `'0001-01-01 00:00:00+00 BC'::timestamptz`, `'9999-12-31 23:59:59.999999+00'::timestamptz`)
}

// usOf is the inverse of timeOf.
func usOf(at pgtype.Timestamptz) int64 {
	switch at.InfinityModifier {
	case pgtype.Infinity:
		return math.MaxInt64
	case pgtype.NegativeInfinity:
		return math.MinInt64
	default:
		return at.Time.UnixMicro()
	}
}

// What is shown for times that have no year of four digits. Neither is a device time.
var (
	earliestShown = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)
	latestShown   = time.Date(9999, 12, 31, 23, 59, 59, 999_999_000, time.UTC)
)

// Shown is a device time as it is shown.
func Shown(us int64) time.Time {
	return micros(min(max(us, earliestShown.UnixMicro()), latestShown.UnixMicro()))
}

// anyTime scans every time of the server into a time.Time.
type anyTime struct{ *pgtype.TimestamptzCodec }

// PlanScan implements pgtype.Codec.
func (c anyTime) PlanScan(m *pgtype.Map, oid uint32, format int16, target any) pgtype.ScanPlan {
	if _, ok := target.(*time.Time); ok {
		return anyTimePlan{c.TimestamptzCodec.PlanScan(m, oid, format, new(pgtype.Timestamptz))}
	}
	return c.TimestamptzCodec.PlanScan(m, oid, format, target)
}

type anyTimePlan struct{ finite pgtype.ScanPlan }

// Scan implements pgtype.ScanPlan.
func (p anyTimePlan) Scan(src []byte, target any) error {
	var at pgtype.Timestamptz
	if err := p.finite.Scan(src, &at); err != nil {
		return err
	}
	to := target.(*time.Time)
	switch {
	case !at.Valid:
		return errors.New("cannot scan NULL into *time.Time")
	case at.InfinityModifier == pgtype.Infinity, at.Time.After(latestShown):
		*to = latestShown
	case at.InfinityModifier == pgtype.NegativeInfinity, at.Time.Before(earliestShown):
		*to = earliestShown
	default:
		*to = at.Time
	}
	return nil
}
