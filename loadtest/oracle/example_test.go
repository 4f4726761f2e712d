package oracle_test

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/oracle"
)

func ExampleOracle_Judge() {
	var buf bytes.Buffer
	log, err := fleet.NewLogWriter(&buf)
	if err != nil {
		fmt.Println(err)
		return
	}
	at := time.Date(2026, time.May, 2, 10, 0, 0, 0, time.UTC)
	for i := range 4 {
		_ = log.Append(&fleet.Sent{
			ID: telemetry.EntryID{Ms: 1_777_777_777_000 + uint64(i)},
			Message: fleet.Message{
				DeviceID: "356307042441013", Codec: "8", Latitude: 42.5, Longitude: 1.5,
				Time: at.Add(time.Duration(i/2) * time.Second), // each record twice
			},
		})
	}
	_ = log.Flush()

	o, err := oracle.New(fleet.NewLog(bytes.NewReader(buf.Bytes()), int64(buf.Len())))
	if err != nil {
		fmt.Println(err)
		return
	}
	var table []oracle.Row
	for row, err := range o.Positions() {
		if err != nil {
			fmt.Println(err)
			return
		}
		table = append(table, row)
	}
	table[1].IngestedUS += 250_000 // as if the inserter had looked at its own clock

	report, err := o.Judge(oracle.Observed{Positions: all(slices.Clone(table))})
	if err != nil {
		fmt.Println(err)
		return
	}
	a := report.Account
	fmt.Println("entries", a.Entries, "stored", a.Stored, "duplicates", a.Duplicates, "lost", a.Lost, "mismatches", a.Mismatches)
	fmt.Println(report.Examples[0])
	// Output:
	// entries 4 stored 2 duplicates 2 lost 0 mismatches 1
	// field device 356307042441013 at 2026-05-02T10:00:01.000000Z entry 1777777777002-0: ingested_at: want 2026-05-03T03:09:37.002000Z, got 2026-05-03T03:09:37.252000Z
}
