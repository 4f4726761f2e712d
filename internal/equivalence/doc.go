// Package equivalence has tests only, of promise P5: positions, crossings and geofence
// timing depend on what was sent alone, not on order, repetition, batches, the instance, or
// what became of it. What pipelines leave in the tables is compared with one pass of
// loadtest/oracle over the input, and with what others published about real tracks.
package equivalence
