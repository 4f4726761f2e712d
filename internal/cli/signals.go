package cli

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// OnSecondSignal calls end at the second SIGINT or SIGTERM. The default action
// does not suffice: other code listens to signals too, and the first process of a
// container has none. The returned function stops the listening.
func OnSecondSignal(end func()) (stop func()) {
	signals, done := make(chan os.Signal, 2), make(chan struct{})
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	var watching sync.WaitGroup
	watching.Go(func() {
		for range 2 {
			select {
			case <-signals:
			case <-done:
				return
			}
		}
		end()
	})
	return func() {
		signal.Stop(signals)
		close(done)
		watching.Wait()
	}
}
