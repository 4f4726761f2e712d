//go:build !mutant

package modules

import (
	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/pipeline"
)

// Where a build with the tag mutant records what is done under fencing tokens, this
// one does nothing.

func recordPipeline(d pipeline.Deps, _ Member, _ string) pipeline.Deps { return d }

func recordFleet(d coordination.Deps, _ Member, _ string) coordination.Deps { return d }
