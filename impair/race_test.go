//go:build race

package impair

// raced: the race detector takes ten times as long for what has one goroutine.
const raced = true
