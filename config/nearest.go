package config

import (
	"fmt"
	"strings"
)

// DidYouMean says which of the known words was likely meant, or which there are.
func DidYouMean(word string, known []string) string {
	best, most := "", max(1, len(word)/3) // a letter in three wrong: more is another word
	for _, k := range known {
		if len(word) > len(k)+most { // and costs no time
			continue
		}
		if d := distance(strings.ToLower(word), k); d <= most {
			best, most = k, d-1
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %s?", best)
	}
	const shown = 40 // more are no help
	switch more := len(known) - shown; {
	case len(known) == 0:
		return "there is none"
	case len(known) == 1:
		return "want " + known[0]
	case more > 0:
		return fmt.Sprintf("want %s or one of %d more", strings.Join(known[:shown], ", "), more)
	}
	return "want " + strings.Join(known[:len(known)-1], ", ") + " or " + known[len(known)-1]
}

// distance is how many letters are to be put in, left out, changed or swapped with the next (optimal string alignment).
func distance(a, b string) int {
	two, one, now := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range one {
		one[j] = j
	}
	for i := 1; i <= len(a); i++ {
		now[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			now[j] = min(one[j]+1, now[j-1]+1, one[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				now[j] = min(now[j], two[j-2]+1)
			}
		}
		two, one, now = one, now, two
	}
	return one[len(b)]
}
