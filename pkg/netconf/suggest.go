package netconf

import (
	"slices"
	"strings"
)

// list joins words for a message.
func list(words []string) string { return strings.Join(words, ", ") }

// Nearest is the known key that key is most likely a misspelling of; empty
// where none is near. The daemon's settings suggest by it as well.
func Nearest(key string, known []string) string {
	best, least := "", 3
	for _, w := range known {
		// A short word has others within two edits that mean something else.
		if d := distance(strings.ToLower(key), strings.ToLower(w)); d < least && d <= len(w)/2 {
			best, least = w, d
		}
	}
	return best
}

// distance is how many bytes have to be inserted, deleted, replaced or swapped
// with their neighbour to make b of a (optimal string alignment).
func distance(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			replaced := last[j]
			if a[i] != b[j] {
				replaced++
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, replaced)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last = last, slices.Clone(row)
	}
	return last[len(b)]
}
