package vm

// VDE plugs into a vde_switch, whose socket's folder is named. QEMU must have been built with it, as Debian's is.
func VDE(switchDir string) Netdev { return Netdev{options: "vde,sock=" + escape(switchDir)} }

// StreamListen waits at a unix socket for a peer that speaks QEMU's stream framing.
func StreamListen(path string) Netdev {
	return Netdev{options: "stream,server=on,addr.type=unix,addr.path=" + escape(path)}
}
