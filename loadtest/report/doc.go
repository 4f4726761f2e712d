// Package report draws a result as one HTML page that needs nothing else.
package report
