// Package guest makes a small Linux that boots in seconds, for a virtual machine that needs no more than a kernel, a shell
// and its network: Debian's cloud kernel or this machine's own, busybox, and an agent that takes commands.
//
//	im, err := guest.Make(ctx, log)              // once; kept in the user's cache folder
//	initrd, err := im.For(dir, &guest.Node{      // one machine's settings, appended
//		Name:       "router",
//		Interfaces: []guest.Interface{{Name: "eth0", MAC: mac, DHCP: true}},
//	})
//	exec.Command("qemu-system-x86_64", "-kernel", im.Kernel, "-initrd", initrd, "-append", im.Append, …)
//
// Nothing is installed and no rights are needed. The kernel and busybox come from this machine where both are there, can be
// read, and have what is needed (virtio); else from Debian's packages, by apt-get download and dpkg-deb.
//
// In it, [Agent] speaks QEMU's guest agent protocol (docs/interop/qemu-ga-ref of QEMU) at the virtio port
// org.qemu.guest_agent.0, so that anybody's client works. Its program is the one that runs, if that is static, for this
// package takes over before main in a program whose name is [AgentName]; else vmnetd, or one built by the go tool.
//
// What unpacks packages, resolves kernel modules and writes an initramfs is exported: the guests of this project's own
// tests are made by it, too. It boots nothing.
package guest
