package testbed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// beside returns the path of a file of the instance's own.
func (in *Instance) beside(what string) string {
	return filepath.Join(filepath.Dir(in.logFile), in.Name+"."+what)
}

// Hold has the instance hold back each batch just before its transaction.
func (in *Instance) Hold() error {
	if err := os.WriteFile(in.beside("hold"), nil, 0o600); err != nil {
		return fmt.Errorf("hold instance %s: %w", in.Name, err)
	}
	return nil
}

// Proceed ends that.
func (in *Instance) Proceed() { _ = os.Remove(in.beside("hold")) }

// Holding returns an error unless batches are, or are not, held back or being written
// after that.
func (in *Instance) Holding(want bool) error {
	held, err := filepath.Glob(in.beside("held-*"))
	if err != nil {
		return GiveUp(err)
	}
	if len(held) > 0 == want {
		return nil
	}
	if want {
		return fmt.Errorf("instance %s holds nothing back", in.Name)
	}
	return errors.New("instance " + in.Name + " has not written what it held back")
}
