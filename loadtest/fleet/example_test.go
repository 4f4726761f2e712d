package fleet_test

import (
	"fmt"
	"time"

	"github.com/trmtracking/processor/loadtest/fleet"
)

func ExampleProfile_Source() {
	p := fleet.Rally(1)
	p.Devices, p.Duration = 3, 2*time.Second
	source, err := p.Source()
	if err != nil {
		fmt.Println(err)
		return
	}
	for it, ok := source.Next(); ok; it, ok = source.Next() {
		at := it.Message.Time.Format("15:04:05.000")
		fmt.Println(it.At.Round(time.Millisecond), it.Message.DeviceID, at)
	}
	// Output:
	// 0s 356307040000001 08:00:00.000
	// 333ms 356307040000019 08:00:00.333
	// 667ms 356307040000027 08:00:00.666
	// 1s 356307040000001 08:00:01.000
	// 1.333s 356307040000019 08:00:01.333
	// 1.667s 356307040000027 08:00:01.666
}

func ExampleAppendPayload() {
	m := fleet.Message{
		DeviceID: "352093081452251", Codec: "8", Time: time.UnixMilli(1767323045678),
		Latitude: 54.6871593, Longitude: 25.2796514, Speed: 57, Satellites: 14,
		Attributes: []fleet.Attribute{
			fleet.NumberAttribute("240", 1),
			fleet.BigIntAttribute("78", "18446744073709551615"),
		},
	}
	fmt.Println(string(fleet.AppendPayload(nil, &m)))
	fmt.Println(string(fleet.AppendStoredAttributes(nil, &m)))
	// Output:
	// {"device_id":"352093081452251","timestamp":"2026-01-02T03:04:05.678Z","latitude":54.6871593,"longitude":25.2796514,"altitude":0,"angle":0,"speed":57,"satellites":14,"priority":0,"attributes":{"78":{"__bigint":"18446744073709551615"},"240":1}}
	// {"78":"18446744073709551615","240":1}
}
