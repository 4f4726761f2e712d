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
