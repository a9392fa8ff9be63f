//go:build !race

package impair

const raced = false
