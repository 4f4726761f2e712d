package pipeline

import "fmt"

// crashError is why an entry is given up that was alone in hand when processes died.
type crashError struct{ deaths int }

func (e *crashError) Error() string {
	return fmt.Sprintf("crash: processes died %d times, in the end while this entry was alone in hand", e.deaths)
}
