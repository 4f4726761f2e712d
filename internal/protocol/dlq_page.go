package protocol

// DLQBytes returns the size of all fields of the dead letters.
func DLQBytes(letters []DLQEntry) int {
	size := 0
	for i := range letters {
		size += letters[i].Entry.Size()
	}
	return size
}
