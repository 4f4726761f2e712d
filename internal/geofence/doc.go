// Package geofence computes which fences a device is in and which it crossed
// between two fixes. It is pure: the result depends only on the set of fences and
// the fixes; there is no clock, no goroutine and no state.
//
// A [Set] is built from fence versions and shared by all workers. For each record
// of a device the pipeline calls [Set.Crossings] with the previous fix and the
// fix itself, and [Set.Initial] for the first fix of all. Rehydration,
// recomputation of a window and the operator's verify command make
// the same calls. [Fence.Check] validates a fence before it is stored,
// [ParseFeatures] reads fences from a file. [Set.Renew] reloads a set.
//
// # Promises
//
// The tests of this package carry these numbers; the promises P1 to P10 of the
// whole service are others.
//
//  1. The state of a device is its last fix. Membership at a fix is [Set.At] of
//     that fix, so it is derived and never carried along, and evaluating a
//     window again gives the rows that evaluating record by record gave.
//  2. Crossings of an area or a circle alternate between enter and exit, and
//     lead from the point test at the earlier fix to the point test at the later
//     one, whatever the rounding. With the enters marked Initial, the last row
//     per fence says where the device is.
//  3. A leg across a whole fence gives enter and exit; across a concave fence or a
//     hole several, with ordinals from 0 in order of time.
//  4. Time and place are interpolated along the leg and lie between the fixes.
//  5. The point test in areas is exact for the given doubles, edges included; along a
//     border that parts share, for the one that they share.
//  6. A fence that is invalid is skipped and reported, and no other is affected.
//  7. A record without crossings allocates nothing, and without fences the cost is
//     negligible.
//  8. The order in which fences are given changes no row.
//  9. Memory stays in proportion to the text of the fences.
//
// # What counts
//
// The leg between two fixes is the straight line in longitude and latitude, the
// short way round the world, at constant speed. Areas lie in the same plane.
// Corridors are areas round a line: each edge, in pieces of at most half a degree of
// latitude, is measured in a plane of metres that is true at the middle latitude
// of the piece.
// Circles are measured on the sphere of [EarthRadiusM] by the haversine formula;
// where a leg meets one is found with that point test itself.
//
// The boundary counts as inside. The instants inside a fence are thus closed
// intervals, and crossings are their ends. Touching it from outside, at a corner
// or with a fix on an edge, is an interval of length 0: enter and exit at one
// instant. This is necessary, because a fix exactly there is inside, and a late
// record must not change the crossings of its neighbours. For the same reason
// touching the edge of a hole from inside is no crossing.
//
// A gate is passed forward from the left of the line, as drawn from its first
// position to its last, to its right; seen from the first position towards the last, it goes from left to right. The line itself counts as
// its right side, so a fix exactly on it does not pass the gate twice. At an inner
// position the angle between both edges decides which side a leg comes from or
// goes to, so a fix exactly there counts as the way just beside the corner. The
// ends belong to the gate; one that ends where it begins has none. No device is
// ever inside a gate.
//
// A fence that is left and entered again within a microsecond was not left, and a gate
// that is passed and passed back within one was not passed: at a corner that a way passes
// within rounding, rounding alone would decide that. Where a fix lies outside, the fence
// was left: the exit on the way to it and the enter on the way from it both count, though
// their times may round to one microsecond.
//
// In files an edge longer than 180 degrees is refused. In a fence that is stored, it
// goes the short way round; one of exactly 360
// degrees along a parallel goes all the way. A ring round the world holds the
// pole on its smaller side. The direction of a ring has no meaning. The parts of
// a MultiPolygon are united; they may share a border, as those cut at the
// antimeridian do, and a way from part to part then stays inside: positions of
// two parts at most 1.5e-6 degrees (17 cm) apart are one, and a position of one part so
// near to an edge of another is a position of that edge. The rings of one part
// have to be a valid polygon.
//
// A fence is a series of versions with spans of device time. Membership at a
// fix is that of the version valid at the time of that fix; a version that is
// not enabled contains nothing. When the same version is not valid at both
// fixes, only the net change counts, at the later fix, and no gate is passed. A
// version whose span lies between two fixes has no effect. The same net change
// is all that counts across a gap longer than the given one.
//
// Crossings are those of the true border. A fence may say when one counts, by an exit
// margin, a dwell or an interval: [Set.Walk] applies that along a whole track, and
// [Set.Derive] in a part of it, with the same result. [Set.Between] does it for the way
// between two fixes, or says that only more fixes show what counts.
//
// # What it does not promise
//
// A leg across a pole is not recognised. Two rows at one instant can come from
// places that differ by less than a rounding error. Fixes outside the ranges of
// latitude and longitude are ignored, not reported.
//
// # Libraries
//
// The R-tree is tidwall/rtree. Reading and validating geometries is
// simplefeatures. Point tests are not: of 20,000 points computed to lie on the
// side of a triangle, simplefeatures 0.59 and orb 0.14 placed 14 % and
// tidwall/geojson 1.4.6 placed 19 % on the wrong side of it or of the edge, and
// with 41 positions they took 2.9, 1.8 and 0.2 microseconds. Crossings that
// agree with the point test need a predicate that is exact, here orient.
package geofence
