package protocol

// dlqPageBytes is the target size of a page of dead letters. One dead letter
// may be as large as the largest entry.
const dlqPageBytes = 4 << 20

// DLQPageSize returns how many dead letters to read next, at most most: as many
// as fit into a page if they are like those read last. The first page is small,
// since their size is unknown.
func DLQPageSize(most int, last []DLQEntry) int {
	if len(last) == 0 {
		return min(most, 16)
	}
	return max(1, min(most, 4*len(last), dlqPageBytes*len(last)/max(1, DLQBytes(last))))
}

// DLQBytes returns the size of all fields of the dead letters.
func DLQBytes(letters []DLQEntry) int {
	size := 0
	for i := range letters {
		size += letters[i].Entry.Size()
	}
	return size
}
