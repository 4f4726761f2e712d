// Package schema applies the embedded migrations and compares a database with
// what this binary needs (catalog.json, kept by a test). It is used at start and
// by `processor migrate`; what the service writes is in internal/store.
package schema
