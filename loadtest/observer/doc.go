// Package observer reads what a service left in Postgres, whole tables at a time,
// and has the database itself note who committed what, by triggers. It fills
// disks and drops tables: it is for databases of load tests and tests, and no
// part of the service imports it.
package observer
