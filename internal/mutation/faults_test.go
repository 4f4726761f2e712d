package mutation_test

// faults take the answer to a fault of servers and administrators away, each of
// which had stopped, lost or corrupted something.
var faults = []mutant{
	// A request that cannot succeed held its worker.
	{
		"a request is tried for ever", "internal/store/requests.go",
		"last = o.Request.Attempts+tried >= requestAttempts", "last = o.Request.Attempts+tried >= 1000*requestAttempts",
		"pipeline", "TestARequestThatCannotSucceed",
	},
	{
		"a request runs in the place of its worker", "pipeline/requests.go",
		"w.stepping.Go(func() {", "func(f func()) { f() }(func() {",
		"pipeline", "TestARequestThatCannotSucceed",
	},
	{
		"a cancelled request goes on", "internal/store/requests.go",
		"  and state in ('waiting', 'running')\n  and (`+requestEnds+`)", "  and (`+requestEnds+`)",
		"pipeline", "TestACancelledRequest",
	},
	{
		"positions has no replica identity", "migrations/0001_positions.sql",
		"    alter table public.positions replica identity using index positions_device_ts;", "    null;",
		"internal/store/schema", "TestPositionsCanBeErased",
	},
	{
		"a statement touches any number of heaps", "internal/store/heaps.go",
		"heapsAtOnce = 64", "heapsAtOnce = 1 << 20",
		"internal/store", "TestNoStatementTouchesMoreHeaps",
	},
	// Faults of nobody's row made dead letters.
	{
		"others are always taken", "pipeline/breaker.go",
		"return taken || w.breaker.storedSince(since), err", "return true, err",
		"pipeline", "TestAFaultThatIsNoRowsOwn",
	},
	{
		"the breaker never opens", "pipeline/breaker.go",
		"r.open = r.rows > breakerRows &&", "r.open = r.rows > 1<<20 &&",
		"pipeline", "TestAConstraintThatMostRowsBreak",
	},
	{
		"an open breaker does not look at what waits", "pipeline/breaker.go",
		"return taken < others+1, others, err", "return taken < others+1 || others >= 0, others, err",
		"pipeline", "TestAFewFaultyDevicesDoNotHold",
	},
	{
		"few devices are a shard", "pipeline/breaker.go",
		"(!most || others < breakerDevices && !w.breaker.openForAll(reason)):", "!most:",
		"pipeline", "TestFaultyDevicesThatFillWhatIsRead",
	},
	{
		"a pause outlives what it waited with", "pipeline/reader.go",
		"if s.pause != nil && s.pause.reread {", "if false {",
		"pipeline", "TestAPauseEndsWithAnEmptyQueue",
	},
	{
		"a record that loses again counts its jump again", "internal/store/recompute_crossings.go",
		"			if lost[i] {\n				w.stored = nil\n			}\n", "",
		"internal/store", "TestARedeliveredConflictCountsNoJump",
	},
	{
		"rows of several devices that are refused alike are given up", "pipeline/breaker.go",
		"case by.shard == allShards && len(r.devices) >= breakerDevices && stored < breakerShare*r.rows:", "case false && stored < breakerShare*r.rows:",
		"pipeline", "TestRowsThatAFewRefuseAlike",
	},
	{
		"the limits of the server are a row's", "internal/store/errors.go",
		"slices.Contains(serverLimits, err.Routine)", "slices.Contains(serverLimits[:0], err.Routine)",
		"internal/store", "TestALimitOfTheServer",
	},
	// Reads too large for the link or the server.
	{
		"a read that broke is not made smaller", "internal/stream/read_pace.go",
		"p.limit = max(1, min(firstRead, entries/2))", "p.limit = entries",
		"internal/stream", "TestAReadThatTheLink|TestAServerThatLimits",
	},
	// Log readers.
	{
		"who logs waits for the reader", "internal/logbuffer/logbuffer.go",
		"	w.bytes += len(line)\n", "	w.bytes += len(line)\n	_, _ = w.out.Write(line)\n",
		"internal/e2e", "TestALogReader/stalls",
	},
	{
		"a closed log ends the process", "cmd/processor/run.go",
		"signal.Ignore(syscall.SIGPIPE)", "signal.Reset(syscall.SIGPIPE)",
		"internal/e2e", "TestALogReader/ends",
	},
	{
		"an exit waits for the log", "internal/logbuffer/logbuffer.go",
		"	case <-t.C:\n", "	case <-t.C:\n		<-idle\n",
		"internal/e2e", "TestALogReader/stalls",
	},
	// Text.
	{
		"client_encoding is the role's", "internal/store/pool.go",
		"cc.RuntimeParams[\"client_encoding\"] = \"UTF8\"", "delete(cc.RuntimeParams, \"client_encoding\")",
		"internal/store", "TestTextIsSentAsUTF8",
	},
	{
		"a database of any encoding is used", "modules/postgres.go",
		"	case \"UTF8\":\n", "	case \"UTF8\", \"LATIN1\":\n",
		"modules", "TestADatabaseThatCannotHold",
	},
	// Poolers.
	{
		"a pooler that lends sessions is used", "internal/store/pooler.go",
		"	if lends {\n", "	if lends && false {\n",
		"internal/e2e", "TestAPoolerThatLendsSessions",
	},
	{
		"a query mode that cannot send JSON is used", "internal/config/check.go",
		"case \"\", \"cache_statement\", \"cache_describe\", \"describe_exec\":", "case \"\", \"cache_statement\", \"cache_describe\", \"describe_exec\", \"exec\":",
		"internal/e2e", "TestTheQueryModeOfTheURL/default_query_exec_mode=exec",
	},
	// Policies and rules.
	{
		"policies and rules are not looked for", "internal/store/schema/verify.go",
		"		r.problem(kind, \"on \"+table, want, have)\n", "		_ = want\n",
		"internal/e2e", "TestPoliciesAndRules",
	},
	// Losses.
	{
		"entries that a rewrite drops are not counted", "internal/stream/prelude.lua",
		"if recorded and now < recorded then", "if recorded and now < 0 then",
		"internal/stream", "TestP6PendingEntriesThatARewrite",
	},
	// What degrades.
	{
		"an ID ahead of the clock is new", "internal/telemetry/entry.go",
		"return 0, float64(id.Ms-ms) / 1000", "return 0, 0",
		"coordination/tasks", "TestP10AGauge",
	},
	{
		"a Redis that refuses writes is ready", "internal/stream/inspect.go",
		"writableScript.Run(ctx, g.client, []string{g.names.Stream}).Err()", "g.client.Ping(ctx).Err()",
		"cmd/processor", "TestARedisThatRefuses",
	},
	{
		"large ends of a stream at rest are read each time", "internal/stream/at_rest.go",
		"r.large, r.ends = size >= largeEnds, nil", "r.large, r.ends = size >= 1<<30, nil",
		"internal/stream", "TestTheLargeEnds",
	},
	// Members and look-ups.
	{
		"only who opened it closes the incident of a refusal", "coordination/tasks/redis_refuses.go",
		"	case code == r.logged:\n", "	case code == r.logged:\n		return nil\n",
		"coordination/tasks", "TestAnyMemberCloses",
	},
	{
		"a pause waits for the end of the load", "pipeline/dispatcher.go",
		" || time.Since(asked) > d.cfg.DispatchLeaseTTL {", " || asked.IsZero() {",
		"pipeline", "TestAPauseTakesEffect",
	},
	{
		"who waits for a look-up waits as long as it takes", "internal/store/known.go",
		"if !at.IsZero() && age > 0 {", "if false {",
		"internal/store", "TestALookUpThatHangs",
	},
	{
		"a look-up that took too long makes batches smaller", "internal/store/known.go",
		"f.TooMuch = false", "_ = f.TooMuch",
		"internal/store", "TestALookUpThatHangs",
	},
	{
		"an old primary is as good as its standby", "internal/store/server_generation.go",
		"timeline < r.timeline {", "timeline < 0 {",
		"internal/store", "TestAnOldPrimary",
	},
}
