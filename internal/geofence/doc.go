// Package geofence decides where a device is and what it crossed on the way
// there.
package geofence
