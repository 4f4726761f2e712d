package telemetry

import "time"

// Device times are accepted from minTime up to, and not including, maxTime:
// trackers with unset clocks report times near 1970, which are valid data.
var (
	minTime = time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	maxTime = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
)

// two returns the number of two digits at the start of s, or -1.
func two(s string) int {
	a, b := s[0]-'0', s[1]-'0'
	if a > 9 || b > 9 {
		return -1
	}
	return int(a)*10 + int(b)
}

// parseTime reads RFC 3339 and truncates to microseconds, towards the past. Any
// number of fractional digits is accepted, as are t and z in lower case, and a
// leap second, which becomes the second after it. ok is false for anything else.
func parseTime(s string) (us int64, ok bool) {
	const shape = "2006-01-02T15:04:05"
	if len(s) <= len(shape) || s[4] != '-' || s[7] != '-' || s[10]|0x20 != 't' || s[13] != ':' || s[16] != ':' {
		return 0, false
	}
	century, year := two(s), two(s[2:])
	month, day := two(s[5:]), two(s[8:])
	hour, minute, second := two(s[11:]), two(s[14:]), two(s[17:])
	if century < 0 || year < 0 || month < 1 || month > 12 || hour < 0 || hour > 23 ||
		minute < 0 || minute > 59 || second < 0 || second > 60 {
		return 0, false
	}
	year += century * 100
	if day < 1 || day > daysIn(month, year) {
		return 0, false
	}
	s = s[len(shape):]

	var fraction int64
	if s[0] == '.' {
		unit := int64(100_000)
		i := 1
		for ; i < len(s) && s[i]-'0' <= 9; i++ {
			fraction += int64(s[i]-'0') * unit
			unit /= 10
		}
		if i == 1 {
			return 0, false
		}
		s = s[i:]
	}

	offset := 0
	switch {
	case s == "Z" || s == "z":
	case len(s) == 6 && (s[0] == '+' || s[0] == '-') && s[3] == ':':
		hours, minutes := two(s[1:]), two(s[4:])
		if hours < 0 || hours > 23 || minutes < 0 || minutes > 59 {
			return 0, false
		}
		if offset = hours*3600 + minutes*60; s[0] == '-' {
			offset = -offset
		}
	default:
		return 0, false
	}

	seconds := daysBefore(year, month, day)*86400 + int64(hour*3600+minute*60+second-offset)
	if second == 60 {
		if seconds%86400 != 0 { // leap seconds end a UTC day
			return 0, false
		}
		fraction = 0
	}
	return seconds*1_000_000 + fraction, true
}

func isLeap(year int) bool { return year%4 == 0 && (year%100 != 0 || year%400 == 0) }

func daysIn(month, year int) int {
	switch month {
	case 4, 6, 9, 11:
		return 30
	case 2:
		if isLeap(year) {
			return 29
		}
		return 28
	}
	return 31
}

// daysBefore returns the number of days from 1970-01-01 to the date.

func daysBefore(year, month, day int) int64 {
	// Years that begin in March have their leap day at the end, and their
	// months before a given one follow a straight line.
	if month <= 2 {
		year--
		month += 12
	}
	days := 365*year + floorDiv(year, 4) - floorDiv(year, 100) + floorDiv(year, 400)
	days += (153*(month-3) + 2) / 5
	return int64(days + day - 1 - 719468)
}

func floorDiv(a, b int) int {
	if a < 0 {
		return -((-a + b - 1) / b)
	}
	return a / b
}
