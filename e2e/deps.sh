#!/bin/sh
# Installs the Debian packages that the demo or the tests need and that are not here yet.
#
#   e2e/deps.sh demo|test|bench
#
# What is here already is left alone, so it needs no rights and no network then. Otherwise it
# needs root or sudo. The guests' kernel and busybox are not installed at all: e2e/vm unpacks them
# into its cache.
set -eu

# a file or command that shows that it is here, and the package it comes from
demo="qemu-system-x86_64:qemu-system-x86"
# gcc and the C headers for go test -race; ip for namespaces; real DHCP clients; ping and unshare in namespaces; a VDE switch; what checks units and hands sockets over; a kernel that is a process; what reads captures (tshark brings capinfos)
test="$demo gcc:gcc /usr/include/stdio.h:libc6-dev ip:iproute2 dhclient:isc-dhcp-client busybox:busybox-static vde_switch:vde2 vde_plug:vdeplug ping:iputils-ping unshare:util-linux nsenter:util-linux linux.uml:user-mode-linux chromium:chromium systemd-analyze:systemd systemd-socket-activate:systemd tshark:tshark tcpdump:tcpdump"
bench="ip:iproute2 iperf3:iperf3" # the peers are the user's choice

case ${1-} in
demo) want=$demo ;;
test) want=$test ;;
bench) want=$bench ;;
*)
	echo "usage: e2e/deps.sh demo|test|bench" >&2
	exit 2
	;;
esac
PATH=$PATH:/usr/sbin:/sbin # where an ordinary user's PATH may not look
missing=
for w in $want; do
	sign=${w%%:*}
	case $sign in
	/*) [ -e "$sign" ] && continue ;;
	*) command -v "$sign" >/dev/null && continue ;;
	esac
	missing="$missing ${w#*:}"
done
[ -n "$missing" ] || exit 0

cannot() {
	echo "missing packages:$missing" >&2
	echo "$1; install them yourself: apt-get install$missing" >&2
	exit 1
}
command -v apt-get >/dev/null || cannot "this is not Debian"
if [ "$(id -u)" = 0 ]; then
	root=
elif ! command -v sudo >/dev/null; then
	cannot "not root, and there is no sudo"
elif [ -t 0 ]; then
	root=sudo
else
	root="sudo -n" # nobody is there to type a password
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "installing$missing"
if ! { $root apt-get update -q &&
	$root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing; } </dev/null >"$log" 2>&1; then
	tail -n 20 "$log" >&2
	cannot "apt-get failed"
fi
