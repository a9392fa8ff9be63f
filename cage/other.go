//go:build !linux

package cage

// Close builds no walls.
func (p Plan) Close() (Walls, error) {
	var w Walls
	return w, w.missing(p.Required, "all walls", ErrLinux)
}

// Look says what this system has.
func Look() Support {
	return Support{LandlockWhy: "Linux only", SeccompWhy: "Linux only"}
}
