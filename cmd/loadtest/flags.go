package main

import (
	"github.com/spf13/pflag"

	"github.com/trmtracking/processor/loadtest/bench"
)

// measureFlags are those of what is measured.
func measureFlags(flags *pflag.FlagSet, cfg *bench.Config) {
	processorFlag(flags, &cfg.Processor)
	flags.StringArrayVar(&cfg.Env, "env", nil, "further `NAME=value` for the instances; may be repeated")
	flags.Uint64Var(&cfg.Seed, "seed", 9, "of the fleet")
}

func processorFlag(flags *pflag.FlagSet, program *string) {
	flags.StringVar(program, "processor", "", "`program` to run (default: processor beside this one, else built from source)")
}
