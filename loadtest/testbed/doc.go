// Package testbed holds what a load test stands on: private servers or named ones
// that are left as they were found, instances of the program that is deployed, as
// processes or containers, a fleet sent in the background, and what all of them are
// polled for.
//
//	Servers    Redis and Postgres, and our own way to them past all proxies
//	Cluster    slots, each filled by one Instance after the other
//	Load       fleets sent one after the other into one send log
//	Watch      a sample of everything four times a second
//	Probe      looks for entries that were acknowledged too early
//
// No process outlives Close.
package testbed
