package protocol

// dlqPageBytes is what a page of dead letters should not exceed by much: one
// of them may be as large as the largest entry.
const dlqPageBytes = 4 << 20

// DLQPageSize is how many dead letters to read at once, at most the given number:
// as many as would have fitted into a page had all been like those read last.
// The first page is small, since nothing is known yet.
func DLQPageSize(most int, last []DLQEntry) int {
	if len(last) == 0 {
		return min(most, 16)
	}
	return max(1, min(most, 4*len(last), dlqPageBytes*len(last)/max(1, DLQBytes(last))))
}

// DLQBytes is the size of all fields of some dead letters.
func DLQBytes(letters []DLQEntry) int {
	size := 0
	for i := range letters {
		size += letters[i].Entry.Size()
	}
	return size
}
