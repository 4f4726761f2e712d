// Package fencefile makes GeoJSON of the files in which people have their fences:
// KML, GPX, WKT and tables with a column of WKT. What a fence is, and whether it is
// valid, package geofence decides: here each placemark, track, route, waypoint,
// geometry or row becomes one feature, in the order of the file, so that one which
// is refused can be named by its number.
//
// GPX is read by go-gpx, WKT by simplefeatures. No library that is kept up reads
// KML (go-kml 3.3 writes it only), so its few elements are read with encoding/xml.
package fencefile
