//go:build !windows

package dns

// Where the host says which resolvers it uses. On macOS configd keeps the
// file for programs like this one; per-domain resolvers are not in it.
const hostResolvConf = "/etc/resolv.conf"
