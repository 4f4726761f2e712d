// Package pipelinetest runs pipelines in the process of a test: a stream and a
// database of the test's, and instances that hold all shards or those they are given.
package pipelinetest
