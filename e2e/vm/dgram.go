package vm

import (
	"fmt"
	"net/netip"
)

// DgramUDP sends a frame a UDP datagram, from one port to another.
func DgramUDP(local, remote netip.AddrPort) Netdev {
	return Netdev{options: fmt.Sprintf("dgram,local.type=inet,local.host=%s,local.port=%d,remote.type=inet,remote.host=%s,remote.port=%d",
		local.Addr(), local.Port(), remote.Addr(), remote.Port())}
}
