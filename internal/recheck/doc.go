// Package recheck derives the crossings of a device a second time, from the rules as
// they are written down, to check what the service recorded.
//
// It shares no code with what it checks: it imports no other package of this module.
// Areas and gates are computed in rational numbers without rounding, circles from
// chords on the sphere. Where the service follows a device fix by fix, it looks at all
// of its fixes at once. So it is slow, and needs 40 bytes for each fix.
//
// The oracle of the load tests uses it, and `processor device verify`.
package recheck
