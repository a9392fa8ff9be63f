//go:build unix && !linux

package portforward

// maxUnixPath is sizeof sun_path on the BSDs and darwin, 104, without its NUL.
const maxUnixPath = 103
