// Package config reads the whole configuration of the service from the
// environment, once, at the edge.
//
// What it promises:
//
//  1. Load reports all problems together, each with the variable, its value and
//     the rule it breaks.
//  2. A secret is never printed: not by Load's error, not by any formatting
//     verb, not in logs, JSON or dumps. User, host, port and database may be.
//  3. Values are complete: a default that depends on the machine or on another
//     variable is resolved before Load returns.
//  4. The tags of the structs are the only list of name, default, bounds and help
//     of every variable: for code, help text and docs/reference/configuration.md.
//
// An unknown variable is no error, since the environment is shared with other
// programs; LikelyTypos reports one that looks like a misspelling of ours.
package config
