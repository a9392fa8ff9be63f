//go:build unix && !linux

package main

import "time"

// startedAt is known on Linux alone: elsewhere a pid file of a number that is somebody's is left alone.
func startedAt(int) (time.Time, bool) { return time.Time{}, false }
