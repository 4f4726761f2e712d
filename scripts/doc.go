// Package scripts holds what make calls; its tests run the scripts on
// repositories and machines of their own.
package scripts
