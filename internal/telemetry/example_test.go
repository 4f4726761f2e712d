package telemetry_test

import (
	"errors"
	"fmt"
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
)

func ExampleDecoder_Decode() {
	d := telemetry.NewDecoder(telemetry.DefaultLimits())
	e := telemetry.Entry{
		ID: telemetry.EntryID{Ms: 1767323046000},
		Fields: []string{
			"ts", "2026-01-02T03:04:05.678Z",
			"device_id", "352093081452251",
			"codec", "8E",
			"payload", `{"device_id":"352093081452251","timestamp":"2026-01-02T03:04:05.678Z",` +
				`"latitude":54.6871593,"longitude":25.2796514,"altitude":112,"angle":271,"speed":57,"satellites":14,"priority":0,` +
				`"attributes":{"78":{"__bigint":"18446744073709551615"},"240":1,"385":{"__buffer_b64":"AQID"}}}`,
		},
	}
	var r telemetry.Record
	if err := d.Decode(&e, &r); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(r.DeviceID, r.Time().Format(time.RFC3339Nano), r.Speed)
	fmt.Println(string(r.Attributes))
	// Output:
	// 352093081452251 2026-01-02T03:04:05.678Z 57
	// {"78":"18446744073709551615","240":1,"385":"AQID"}
}

func ExampleDecodeError() {
	m := fleet.Message{DeviceID: "352093081452251", Codec: "8", Time: time.Unix(0, 0), Latitude: 99}
	err := telemetry.NewDecoder(telemetry.DefaultLimits()).Decode(&telemetry.Entry{Fields: fleet.EntryFields(&m)}, new(telemetry.Record))

	var refused *telemetry.DecodeError
	if errors.As(err, &refused) {
		fmt.Println(refused)
		fmt.Println(refused.Fingerprint())
	}
	// Output:
	// invalid: payload.latitude: must lie from -90 to 90
	// invalid/payload.latitude/range
}

func ExampleShardOf() {
	fmt.Println(telemetry.ShardOf("352093081452251", 64))
	// Output: 21
}
