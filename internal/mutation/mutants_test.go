package mutation_test

// mutants are changes that lose, double, hide or stall something and that some
// version of the tests did not notice.
var mutants = []mutant{
	{
		"a plan moves all shards at once", "internal/protocol/hand_over.go",
		"if left--; left < 0 {", "if left--; false {",
		"internal/protocol", "TestAPlanMovesAFewShardsAtATime",
	},
	{
		"a shard that waits for long holds up the plan", "internal/protocol/hand_over.go",
		"willing(s.Owner) && !late(i)", "willing(s.Owner) && (!late(i) || true)",
		"internal/protocol", "TestAShardThatHasWaitedForLong",
	},
	{
		"a deploy that announces itself is evened out as it goes", "internal/protocol/planner.go",
		"return n > 0 && n < len(members) &&", "return false && n > 0 && n < len(members) &&",
		"internal/protocol", "TestADeployThatAnnouncesItselfMovesEachShardOnce",
	},
	{
		"moves for load have no budget", "internal/protocol/planner.go",
		"reliefBudget-len(p.moves)", "1000*reliefBudget-len(p.moves)",
		"internal/protocol", "TestAnUnevenFleetIsEvenWithinAMinuteAndThenRests",
	},
	{
		"a new leader evens out what was placed by load", "internal/protocol/planner.go",
		"case p.target == nil && allAssigned && (allHave || p.claimed):", "case p.target == nil && allAssigned && (allHave || p.claimed) && false:",
		"internal/protocol", "TestANewLeaderKeepsWhatWasPlacedByLoad",
	},
	{
		"the deploy of the process that started last is the newest", "coordination/leader.go",
		"!ok || m.Started.Before(first)", "!ok || m.Started.After(first)",
		"coordination", "TestAProcessThatIsStartedAgainMakesItsDeployNoNewer",
	},
	{
		"the epoch of what an owner left is not compared", "pipeline/snapshot.go",
		"int64(o.shards), o.epoch, o.fences,", "int64(o.shards), 0 * o.epoch, o.fences,",
		"pipeline", "TestASnapshotIsTheStateOrNothing",
	},
	{
		"nor its checksum", "pipeline/snapshot.go",
		"!= crc32.Checksum(b[snapshotHeader:], castagnoli)", "== 0",
		"pipeline", "TestASnapshotIsTheStateOrNothing",
	},
	{
		"an owner leaves what it has not committed", "pipeline/snapshot.go",
		"t.grant != grant || w.uncommitted(shard)", "t.grant != grant",
		"pipeline", "TestOnlyWhatIsCommittedIsLeft",
	},
	{
		"a look-up ahead outlives the state of its shard", "pipeline/ahead.go",
		"l.generations[i] != w.state.generations[shard] || ", "",
		"pipeline", "TestP5ALookUpThatWasOvertakenTeachesNothing",
	},
	{
		"and its device, known and forgotten meanwhile", "pipeline/ahead.go",
		"l.drops != w.state.drops", "false",
		"pipeline", "TestP5ALookUpThatWasOvertakenTeachesNothing",
	},
	{
		"and what the device sent meanwhile", "pipeline/ahead.go",
		" || w.state.find(id, shard) != nil || w.state.len >= w.state.max {\n\t\t\tcontinue", " || w.state.len >= w.state.max {\n\t\t\tcontinue",
		"pipeline", "TestP5ADeviceThatWaitsGoesFirstAndWhatItSentHolds",
	},
	{
		"devices are loaded ahead before what waits", "pipeline/worker.go",
		"if nothing && !w.ended {", "if !w.ended {",
		"pipeline", "TestWhatWaitsGoesBeforeWhatIsLoadedAhead",
	},
	{
		"what an owner left is there for a later acquisition", "internal/store/shards.go",
		"  and s.updated_at = st.left_at\n", "  and s.updated_at >= st.left_at\n",
		"internal/store", "TestALockedTableOfStatesDelaysNoShard",
	},
	{
		"and for years", "internal/store/shards.go",
		"if taken.Released = was.Released; taken.Released {", "if taken.Released = was.Released; was.Owner == \"\" {",
		"internal/store", "TestWhatIsLeftIsForTheNextAcquisition",
	},
	{
		"what is sent again waits for a lock of the conflicts", "internal/store/conflicts.go",
		"d, err := c.ask(ctx, rivalsSQL, stay)", "d, err := c.ask(ctx, notedRivalsSQL, stay, c.scope.Stream, c.scope.Group)",
		"internal/e2e", "TestP8ALockOfTablesThatCommitsDoNotNeedStopsNone",
	},
	{
		"a locked table of states holds up shards", "internal/store/blockers.go",
		"optionalLockWait = 50 * time.Millisecond", "optionalLockWait = 20 * time.Second",
		"internal/store", "TestALockedTableOfStatesDelaysNoShard",
	},
	{
		"the progress mark never goes back", "internal/store/write.go",
		"set applied_id = excluded.applied_id,", "set applied_id = case when split_part(p.applied_id, '-', 1)::numeric > split_part(excluded.applied_id, '-', 1)::numeric then p.applied_id else excluded.applied_id end,",
		"internal/store", "TestTheProgressMark",
	},
	{
		"a write does not check the server's generation", "internal/store/write.go",
		"generation != b.ServerGeneration", "generation != b.ServerGeneration && false",
		"internal/store", "TestABatchOfAnotherServerGeneration",
	},
	{
		"a deferred entry is claimed without a lease", "internal/store/deferred.go",
		"next_attempt_at = now() + $6::interval", "next_attempt_at = now() + 0 * $6::interval",
		"internal/store", "TestAClaimedDeferredEntryIsLeased",
	},
	{
		"an attempt begins when its entry is claimed", "internal/store/deferred.go",
		"set next_attempt_at = now() + $6::interval", "set class = 'crash', next_attempt_at = now() + $6::interval",
		"pipeline", "TestADeferredEntryOnWhichProcessesDie",
	},
	{
		"a returned attempt stays counted", "internal/store/deferred.go",
		"d.Attempts-1, d.NextAttempt", "d.Attempts, d.NextAttempt",
		"internal/store", "TestAClaimedDeferredEntryIsLeased",
	},
	{
		"what is not due is claimed", "internal/store/deferred.go",
		"where d.next_attempt_at <= now()", "where d.next_attempt_at <= now() + interval '1 day'",
		"internal/store", "TestWhatIsNotDueIsNotClaimed",
	},
	{
		"a redelivered entry loses its attempts", "internal/store/deferred.go",
		"on conflict (stream, group_name, entry_id, digest) do nothing", "on conflict (stream, group_name, entry_id, digest) do update set attempts = excluded.attempts",
		"internal/store", "TestDeferringAgainKeepsTheAttempts",
	},
	{
		"letters are forgotten while their entries are in the stream", "internal/stream/deadletter_replay.go",
		"id.Less(before) && source.Less(oldest)", "id.Less(before) && (source.Less(oldest) || true)",
		"internal/stream", "TestADeadLetterIsRemembered",
	},
	{
		"young letters are forgotten", "internal/stream/deadletter_replay.go",
		"id.Less(before) && source.Less(oldest)", "(id.Less(before) || true) && source.Less(oldest)",
		"internal/stream", "TestADeadLetterIsRemembered",
	},
	{
		"a changed Redis is noticed and not told", "internal/stream/connect.go",
		"	return errServerChanged\n", "	_ = errServerChanged\n	return nil\n",
		"internal/stream", "TestACommandForAServerThatWasReplacedFails",
	},
	{
		"a dead letter is acknowledged before it is added", "internal/stream/deadletter.lua",
		"local id = redis.call('xadd'", "ack()\nlocal id = redis.call('xadd'",
		"internal/stream", "TestADeadLetterThatCannotBeAddedStaysPending",
	},
	{
		"it is remembered before it is added", "internal/stream/deadletter.lua",
		"local id = redis.call('xadd'", "redis.call('hset', KEYS[3], name, '1-1')\nlocal id = redis.call('xadd'",
		"internal/stream", "TestADeadLetterThatCannotBeAddedStaysPending",
	},
	{
		"the acked mark goes back", "internal/stream/ack.lua",
		"not marks[shard] or after(top, marks[shard])", "true",
		"internal/stream", "TestTheAckedMarkNeverGoesBack",
	},
	{
		"a member that Redis kept away keeps its stall clocks", "internal/protocol/failure_detector.go",
		"s.advanced, s.moved, s.callReturnedAt = now, now, now\n	}\n}", "s.advanced = now\n	}\n}",
		"internal/protocol", "TestAnAbsenceOfRedisIsNoStall",
	},
	{
		"a member is gone one poll late", "internal/protocol/failure_detector.go",
		"now.Sub(s.advanced) >= w.cfg.TTL", "now.Sub(s.advanced) > w.cfg.TTL",
		"internal/protocol", "TestASilentMember",
	},
	{
		"a frozen member comes back idle", "internal/protocol/failure_detector.go",
		"case !s.frozen && now.Sub(s.outAt)", "case now.Sub(s.outAt)",
		"internal/protocol", "TestAFrozenMember",
	},
	{
		"a member without Postgres keeps its shards", "internal/protocol/failure_detector.go",
		"if !w.CutOff(now, m) && !w.seen[m].out {", "if !w.seen[m].out {",
		"internal/protocol", "TestOnlyAMemberCutOff",
	},
	{
		"the first member back after an outage takes all shards", "internal/protocol/failure_detector.go",
		"now.Sub(w.sinkUp) >= w.cfg.SinkGrace", "now.Sub(w.sinkUp) >= 0",
		"internal/protocol", "TestTheFirstMemberBack",
	},
	{
		"a member without Postgres keeps its shards a poll longer", "internal/protocol/failure_detector.go",
		"s.beat.SinkDown >= w.cfg.SinkGrace", "s.beat.SinkDown > w.cfg.SinkGrace",
		"internal/protocol", "TestOnlyAMemberCutOff",
	},
	{
		"the clock guard excludes its limit", "internal/telemetry/eligibility.go",
		"r.TimeUS > r.StreamUS", "r.TimeUS >= r.StreamUS",
		"internal/store", "TestTheRulesAreTheSameInGoAndInSQL",
	},
	{
		"and so does SQL", "internal/store/recompute_crossings.go",
		"interval '1 microsecond' > ingested_at then", "interval '1 microsecond' >= ingested_at then",
		"internal/store", "TestTheRulesAreTheSameInGoAndInSQL",
	},
	{
		"the version of a fence is never renewed", "internal/store/recompute_crossings.go",
		"set fence_version = $2,\n  at = $3,", "set fence_version = case when $2::int > 0 then fence_version end,\n  at = $3,",
		"internal/equivalence", "TestACrossingNamesTheVersionItWasDerivedFrom",
	},
	{
		"the version of a fence is always 1", "internal/store/recompute_crossings.go",
		"int32(fences.Versions[c.Fence]), int16(c.Ordinal)", "1, int16(c.Ordinal)",
		"internal/equivalence", "TestACrossingNamesTheVersionItWasDerivedFrom",
	},
	{
		"the oracle sees: places on a border are outside", "internal/geofence/polygon.go",
		"if g.locate(point{p.x + 360*float64(copies), p.y}) != outside {", "if g.locate(point{p.x + 360*float64(copies), p.y}) == inside {",
		"internal/equivalence", "TestTheOracleSeesWhatEachRuleDecides",
	},
	{
		"the oracle sees: circles are a thousandth too large", "internal/geofence/circle.go",
		"return c.distance(p) <= c.radius }", "return c.distance(p) <= c.radius*1.001 }",
		"internal/equivalence", "TestTheOracleSeesWhatEachRuleDecides",
	},
	{
		"the oracle sees: a gate has its sides the other way round", "internal/geofence/gate.go",
		"op, oq := orient(e.a, e.b, p), orient(e.a, e.b, q)", "op, oq := orient(e.b, e.a, p), orient(e.b, e.a, q)",
		"internal/equivalence", "TestTheOracleSeesWhatEachRuleDecides",
	},
	{
		"the oracle sees: a record without a fix takes part", "internal/telemetry/eligibility.go",
		"		return NoFix\n", "		return Eligible\n",
		"internal/equivalence", "TestTheOracleSeesWhatEachRuleDecides",
	},
	{
		"the oracle sees: a clock ahead takes part", "internal/telemetry/eligibility.go",
		"		return Future\n", "		return Eligible\n",
		"internal/equivalence", "TestTheOracleSeesWhatEachRuleDecides",
	},
	{
		"a rule of eligibility is not applied live", "pipeline/worker.go",
		"w.cfg.Eligibility.Of(&d.record)", "(telemetry.Eligibility{MaxFutureSkew: w.cfg.Eligibility.MaxFutureSkew}).Of(&d.record)",
		"internal/equivalence", "TestOnlyEligibleRecordsCount",
	},
	{
		"a rule of eligibility is not applied to what late records lie between", "internal/store/recompute_crossings.go",
		"c.args(limitsOf(rules), devices", "c.args(limitsOf(telemetry.Eligibility{MaxFutureSkew: rules.MaxFutureSkew}), devices",
		"internal/equivalence", "TestOnlyEligibleRecordsCount",
	},
	{
		"jumps are not looked for live", "pipeline/batch.go",
		"		if top > 0 {\n			b.unsettle", "		if false {\n			b.unsettle",
		"pipeline", "TestP5AJumpMakesNoCrossings/a_lost_sign",
	},
	{
		"jumps are not looked for in a batch that is out of order", "pipeline/batch.go",
		"		b.judgeAll(i, list)\n", "",
		"pipeline", "TestABatchDerivesNothing",
	},
	{
		"jumps are not looked for by transactions", "internal/store/recompute_crossings.go",
		"all.Eligibility.MaxSpeed > 0 || all.Fences.Held()", "all.Fences.Held()",
		"pipeline", "TestP5AJumpMakesNoCrossings/a_lost_sign",
	},
	{
		"what a late record makes of its neighbours is not looked at", "internal/store/recompute_crossings.go",
		"min(w.lo, fixes[0].TimeUS+1)", "w.lo+0*fixes[0].TimeUS",
		"pipeline", "TestP5AJumpMakesNoCrossings/two_that_agree",
	},
	{
		"a passage that was dropped suppresses nothing", "internal/geofence/hold.go",
		"if last := h.lastPassed(c.Kind); !c.Suppressed {", "if last := h.lastPassed(c.Kind); false {",
		"pipeline", "TestP5ARecomputeBehindDroppedPositions/a_passage_is_suppressed",
	},
	{
		"a device in the margin behind dropped positions has left", "internal/geofence/hold.go",
		"if h.within(fix) {", "if false {",
		"pipeline", "TestP5ARecomputeBehindDroppedPositions/it_is_in_the_margin",
	},
	{
		"held borders do not begin anew behind dropped positions", "internal/geofence/hold.go",
		"[t.Fixes[i].TimeUS][fence]\n	return known\n", "[t.Fixes[i].TimeUS][fence]\n	return known && false\n",
		"internal/equivalence", "TestP5RecordsAsOldAsDroppedPositions",
	},
	{
		"the last position takes part after a restart, whatever it is", "pipeline/state.go",
		"d.settled = uint16(shard), s.generations[shard], 0, false", "d.settled = uint16(shard), s.generations[shard], 0, true",
		"pipeline", "TestP5AJumpMakesNoCrossings/two_that_agree",
	},
	{
		"borders are not held still live", "pipeline/batch.go",
		"held := b.rules.Fences.Held()", "held := false",
		"pipeline", "TestP5ABorderThatIsHeldStill/an_exit_is_dated.*live",
	},
	{
		"borders are not held still in a batch that is out of order", "pipeline/batch.go",
		"if !b.rules.Fences.Held() {\n		return", "if true {\n		return",
		"pipeline", "TestP5ABorderThatIsHeldStill/an_exit_is_dated.*newest_first",
	},
	{
		"borders are not held still by transactions", "internal/store/jumps.go",
		"if rules.Fences.Held() {", "if false {",
		"pipeline", "TestP5ABorderThatIsHeldStill/an_exit_is_dated.*late",
	},
	{
		"what may count though nothing more happens is forgotten live", "pipeline/batch.go",
		"		b.kept[t.device] = steps.Kept\n", "		delete(b.kept, t.device)\n",
		"pipeline", "TestP5ABorderThatIsHeldStill/far_away_when.*live",
	},
	{
		"and after a restart", "pipeline/state.go",
		"d.generation, d.batch, d.settled = uint16(shard), s.generations[shard], 0, false", "d.generation, d.batch, d.settled = uint16(shard), s.generations[shard], 0, true",
		"pipeline", "TestP5ABorderThatIsHeldStill/far_away_when.*restarts",
	},
	{
		"what counts is derived without what was before", "internal/geofence/hold.go",
		"d.Before, d.Behind = d.Before || before && !t.Enough, d", "d.Before, d.Behind = d.Before, d",
		"internal/geofence", "TestAStretchIsDerivedAsTheWholeTrackIs",
	},
	{
		"what counts is derived without what follows", "internal/geofence/hold.go",
		"d.Behind || behind && !t.Enough", "d.Behind",
		"internal/geofence", "TestAStretchIsDerivedAsTheWholeTrackIs",
	},
	{
		"a device in the margin is taken to be outside", "internal/geofence/hold.go",
		"unknown = passed || !h.taken || restUS", "unknown = passed || restUS",
		"internal/geofence", "TestBetweenKnowsWhatItDoesNotKnow",
	},
	{
		"what is open is forgotten", "internal/geofence/hold.go",
		"unknown = passed || !h.taken || restUS > 0 && prev.TimeUS < open.UntilUS", "unknown = passed || !h.taken",
		"internal/geofence", "TestBetweenKnowsWhatItDoesNotKnow",
	},
	{
		"a fence far away is not looked for", "internal/geofence/hold.go",
		"t.Fixes[0].TimeUS > t.Fixes[t.From].TimeUS-s.dwellUS", "t.Fixes[0].TimeUS > t.Fixes[t.From].TimeUS",
		"pipeline", "TestP5ABorderThatIsHeldStill/far_away_when.*after_restarts",
	},
	{
		"a rule of eligibility is not applied at rehydration", "internal/store/heaps.go",
		"c.args(limitsOf(rules), devices", "c.args(limitsOf(telemetry.Eligibility{MaxFutureSkew: rules.MaxFutureSkew}), devices",
		"internal/equivalence", "TestOnlyEligibleRecordsCount",
	},
	{
		"the first record holds its time, eligible or not", "internal/store/conflicts.go",
		"and gives_way\n", "and gives_way and false\n",
		"internal/equivalence", "TestP5TheFirstEligibleRecordCounts",
	},
	{
		"a flagged row gives way", "internal/store/conflicts.go",
		" and not w.faulty as gives_way", " as gives_way",
		"internal/store", "TestAFlaggedRowKeepsItsTime",
	},
	{
		"a dispatch lease that is too short stays so", "pipeline/dispatcher.go",
		"d.ttl = max(d.ttl, min(2*took, maxDispatchLease))", "_ = maxDispatchLease",
		"pipeline", "TestP7DispatchingGoesOnWhereItTakesLongerThanItsLease",
	},
	{
		"a verification sees: circles are a fifth too large", "internal/geofence/circle.go",
		"return c.distance(p) <= c.radius }", "return c.distance(p) <= c.radius*1.2 }",
		"internal/store", "TestVerifyDerivesByItself",
	},
	{
		"a verification sees: a gate has its sides the other way round", "internal/geofence/gate.go",
		"op, oq := orient(e.a, e.b, p), orient(e.a, e.b, q)", "op, oq := orient(e.b, e.a, p), orient(e.b, e.a, q)",
		"internal/store", "TestVerifyDerivesByItself",
	},
	{
		"a verification sees: all jumps are plausible", "internal/geofence/crossing.go",
		"return from.distance(point{next.Longitude, next.Latitude}) <= farthest", "return from.distance(point{next.Longitude, next.Latitude}) <= farthest || true",
		"internal/store", "TestVerifyDerivesByItself",
	},
	{
		"a verification sees: a position without a fix takes part", "internal/store/recompute_crossings.go",
		"or satellites < ($1::bigint[])[2] then", "or satellites < 0 * ($1::bigint[])[2] then",
		"internal/store", "TestVerifyDerivesByItself",
	},
	{
		"a verification sees: any time is long enough", "internal/geofence/set.go",
		"v.dwellUS, v.intervalUS = microseconds(v.fence.MinDwellS)", "v.dwellUS, v.intervalUS = microseconds(0*v.fence.MinDwellS)",
		"internal/store", "TestVerifyDerivesByItself",
	},
	{
		"the oracle sees: bytes are stored in the alphabet of URLs", "internal/telemetry/attributes.go",
		"base64.StdEncoding.AppendEncode(d.out, d.octets)", "base64.URLEncoding.AppendEncode(d.out, d.octets)",
		"internal/equivalence", "TestTheOracleSeesWhatEachRuleDecides",
	},
}
