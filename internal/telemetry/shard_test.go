package telemetry_test

import (
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
)

// The vectors that pin the hash: a fleet whose members disagree on one of them
// would apply a device's records in two places.
var shardVectors = []struct {
	device string
	hash   uint64
	shard  int // of 64
}{
	{"", 0xef46db3751d8e999, 0},
	{"a", 0xd24ec4f1a98c6e5b, 27},
	{"352093081452251", 0x40d477e7f1a33895, 21},
	{"356307042441013", 0x86a221b9db0e9de3, 35},
	{"352094089712345", 0x8fd93109366bf107, 7},
	{"867648041234567", 0xd008b4b8d24f89e0, 32},
	{"490154203237518", 0xb96cf87f75a2e446, 6},
	{"350424065001234", 0xc771304e303d7e0d, 13},
	{"353201350896384", 0xbf62f05f606ca99b, 27},
	{"864275031234568", 0xfb2132123ffa3cce, 14},
	{"000000000000000", 0x67ae7c14174072a4, 36},
	{"999999999999999", 0xe33d57dddfab5921, 33},
	{"xct-0123", 0xc3a9cc1328ba8114, 20},
	{"366982330", 0x49ea5d26e13ee58c, 12},
	{"scheidegg-1", 0xd32987d98c6eb4ba, 58},
	{"Fahrzeug-Zürich", 0xbd1121bcc857c9e3, 35},
}

func TestShardsOfDevicesNeverChange(t *testing.T) {
	for _, v := range shardVectors {
		require.Equal(t, v.hash, xxhash.Sum64String(v.device), "xxhash64 of %q", v.device)
		require.Equal(t, v.shard, telemetry.ShardOf(v.device, 64), "shard of %q", v.device)
	}
}

func TestEntriesWithoutADeviceBelongToShardZero(t *testing.T) {
	for _, shards := range []int{1, 2, 64, 1000} {
		require.Zero(t, telemetry.ShardOf("", shards))
	}
}

func TestShardsOfAFleetAreEven(t *testing.T) {
	const devices, shards = 64_000, 64
	var counts [shards]int
	for i := range devices {
		counts[telemetry.ShardOf(imei(i), shards)]++
	}
	for shard, n := range counts {
		require.InDelta(t, devices/shards, n, 200, "devices of shard %d", shard)
	}
}

// imei is the i-th IMEI of a series, check digit included.
func imei(i int) string {
	digits := []byte("35209308" + "000000" + "0")
	for at := 13; at >= 8; at-- {
		digits[at] = byte('0' + i%10)
		i /= 10
	}
	sum := 0
	for at, c := range digits[:14] {
		v := int(c - '0')
		if at%2 == 1 {
			if v *= 2; v > 9 {
				v -= 9
			}
		}
		sum += v
	}
	digits[14] = byte('0' + (10-sum%10)%10)
	return string(digits)
}

// Publishers compute the same from docs/reference/routing.md.
func TestStreamsOfDevicesAreThoseOfTheDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference/routing.md")
	require.NoError(t, err)
	rows := regexp.MustCompile("(?m)^\\| `(.+)` \\| (\\d+) \\| (\\d+) \\| (\\d+) \\|$").FindAllStringSubmatch(string(text), -1)
	require.Greater(t, len(rows), 5)
	for _, row := range rows {
		have := []string{
			strconv.Itoa(telemetry.StreamOf(row[1], 3)), strconv.Itoa(telemetry.StreamOf(row[1], 8)), strconv.Itoa(telemetry.ShardOf(row[1], 64)),
		}
		require.Equal(t, row[2:], have, row[1])
	}
	used := make(map[int]bool)
	for i := range 20_000 {
		if telemetry.StreamOf(imei(i), 8) == 3 {
			used[telemetry.ShardOf(imei(i), 64)] = true
		}
	}
	require.Len(t, used, 64, "each stream uses all of its shards")
}
