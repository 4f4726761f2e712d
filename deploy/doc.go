// Package deploy holds the container and cluster files. It has no code; its
// tests check the files against the budgets of the service.
package deploy
