package mutation_test

// rules apply each rule of eligibility, of held borders, and of how sure a crossing is,
// on all ways that a record takes but one: as it comes, in a batch that is out of order,
// late, and after a restart.
var rules = []mutant{
	{
		"a record without a fix takes part live", "pipeline/worker.go",
		"w.cfg.Eligibility.Of(&d.record)", "(telemetry.Eligibility{MaxFutureSkew: w.cfg.Eligibility.MaxFutureSkew, MaxPast: w.cfg.Eligibility.MaxPast}).Of(&d.record)",
		"internal/equivalence", "TestOnlyEligibleRecordsCount",
	},
	{
		"an ancient one takes part live", "pipeline/worker.go",
		"w.cfg.Eligibility.Of(&d.record)", "(telemetry.Eligibility{MaxFutureSkew: w.cfg.Eligibility.MaxFutureSkew, MinSatellites: w.cfg.Eligibility.MinSatellites}).Of(&d.record)",
		"internal/equivalence", "TestOnlyEligibleRecordsCount",
	},
	{
		"late records lie between those without a fix", "internal/store/recompute_crossings.go",
		"c.args(limitsOf(rules), devices", "c.args(limitsOf(telemetry.Eligibility{MaxFutureSkew: rules.MaxFutureSkew, MaxPast: rules.MaxPast}), devices",
		"internal/equivalence", "TestOnlyEligibleRecordsCount",
	},
	{
		"late records lie between ancient ones", "internal/store/recompute_crossings.go",
		"c.args(limitsOf(rules), devices", "c.args(limitsOf(telemetry.Eligibility{MaxFutureSkew: rules.MaxFutureSkew, MinSatellites: rules.MinSatellites}), devices",
		"internal/equivalence", "TestOnlyEligibleRecordsCount",
	},
	{
		"a device is rehydrated at a record without a fix", "internal/store/heaps.go",
		"c.args(limitsOf(rules), devices", "c.args(limitsOf(telemetry.Eligibility{MaxFutureSkew: rules.MaxFutureSkew, MaxPast: rules.MaxPast}), devices",
		"internal/equivalence", "TestOnlyEligibleRecordsCount",
	},
	{
		"a device is rehydrated at an ancient one", "internal/store/heaps.go",
		"c.args(limitsOf(rules), devices", "c.args(limitsOf(telemetry.Eligibility{MaxFutureSkew: rules.MaxFutureSkew, MinSatellites: rules.MinSatellites}), devices",
		"internal/equivalence", "TestOnlyEligibleRecordsCount",
	},
	{
		"a dwell is not waited for live", "pipeline/batch.go",
		"held := b.rules.Fences.Held()", "held := false",
		"pipeline", "TestP5ABorderThatIsHeldStill/too_short,_live$",
	},
	{
		"a dwell is not waited for in a batch that is out of order", "pipeline/batch.go",
		"if !b.rules.Fences.Held() {\n		return", "if true {\n		return",
		"pipeline", "TestP5ABorderThatIsHeldStill/too_short,_newest_first$",
	},
	{
		"a dwell is not waited for by transactions", "internal/store/jumps.go",
		"if rules.Fences.Held() {", "if false {",
		"pipeline", "TestP5ABorderThatIsHeldStill/too_short,_late$",
	},
	{
		"a dwell is not waited for after a restart", "pipeline/state.go",
		"d.generation, d.batch, d.settled = uint16(shard), s.generations[shard], 0, false", "d.generation, d.batch, d.settled = uint16(shard), s.generations[shard], 0, true",
		"pipeline", "TestP5ABorderThatIsHeldStill/too_short,_after_restarts$",
	},
	{
		"a margin is forgotten after a restart", "pipeline/state.go",
		"d.generation, d.batch, d.settled = uint16(shard), s.generations[shard], 0, false", "d.generation, d.batch, d.settled = uint16(shard), s.generations[shard], 0, true",
		"pipeline", "TestP5ABorderThatIsHeldStill/(an_exit_is_dated|margin_and_dwell).*,_after_restarts$",
	},
	{
		"passages too soon count live", "pipeline/batch.go",
		"held := b.rules.Fences.Held()", "held := false",
		"pipeline", "TestP5ABorderThatIsHeldStill/passages_too_soon,_live$",
	},
	{
		"passages too soon count in a batch that is out of order", "pipeline/batch.go",
		"if !b.rules.Fences.Held() {\n		return", "if true {\n		return",
		"pipeline", "TestP5ABorderThatIsHeldStill/passages_too_soon,_newest_first$",
	},
	{
		"passages too soon count by transactions", "internal/store/jumps.go",
		"if rules.Fences.Held() {", "if false {",
		"pipeline", "TestP5ABorderThatIsHeldStill/passages_too_soon,_late$",
	},
	{
		"reported speeds say nothing live", "pipeline/batch.go",
		"Longitude: r.Longitude, Speed: geofence.WholeKMH(r.Speed)}", "Longitude: r.Longitude}",
		"pipeline", "TestP5HowSureACrossingIs/live$",
	},
	{
		"reported speeds say nothing late", "internal/store/recompute_crossings.go",
		"f.TimeUS, f.Speed = ts.UnixMicro(), geofence.WholeKMH(speed)", "f.TimeUS, f.Speed = ts.UnixMicro(), 0*geofence.WholeKMH(speed)",
		"pipeline", "TestP5HowSureACrossingIs/late$",
	},
	{
		"nor after a restart", "internal/store/heaps.go",
		"f.TimeUS, f.Speed = ts.UnixMicro(), geofence.WholeKMH(speed)", "f.TimeUS, f.Speed = ts.UnixMicro(), 0*geofence.WholeKMH(speed)",
		"pipeline", "TestP5HowSureACrossingIs/after_a_restart$",
	},
}
