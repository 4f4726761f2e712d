// Package tasks is what a leader does for the whole fleet beside assigning
// shards: retention and confirmation of dead letters, neighbours' requests to
// recompute, and the fences that a platform keeps. Each task does a bounded part
// at once and harms nothing when two leaders do it.
package tasks
