package protocol

// DLQBytes returns the size of all fields of the dead letters.
func DLQBytes(letters []DLQEntry) int {
	size := 0
	for i := range letters {
		size += letters[i].Entry.Size()
	}
	return size
}

// DLQRoom is how many dead letters there are, and how full their server is.
type DLQRoom struct {
	Letters    int64
	MemoryUsed int64 // bytes
	MemoryMax  int64 // bytes; 0 for no limit
}
