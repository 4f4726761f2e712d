// Package config reads the whole configuration of the service from the
// environment, once, at the edge.
//
// What it promises:
//
//  1. Every problem is reported at once, each with the variable, its value and
//     the rule it breaks.
//  2. A secret is never printed: not by Load's error, not by any formatting
//     verb, not in logs, JSON or dumps. User, host, port and database may be.
//  3. Values are complete: a default that depends on the machine or on another
//     variable is resolved before anybody sees the Config.
//  4. One list, the tags of the structs, gives name, default, bounds and help
//     of every variable to the reader, to the help text and to docs/reference/configuration.md.
//
// An unknown variable is no error, since the environment belongs to others
// too; one that looks like a misspelling of ours is named by LikelyTypos.
package config
