#!/bin/busybox sh
# The first process of the small Linux. /etc/node has its functions called with this machine's settings.
/bin/busybox mount -t devtmpfs dev /dev
export PATH=/bin:/sbin HOME=/root TERM=vt100
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts /dev/shm && mount -t devpts pts /dev/pts
ln -s /proc/self/fd /dev/fd
while read -r m; do insmod "/lib/modules/$m" || echo "init: module $m: not loaded"; done </lib/modules/order
ip link set lo up
# Ask for a router at once, not after up to a second (RFC 4861 section 6.3.7 spreads a whole network's hosts over it).
echo 0 >/proc/sys/net/ipv6/conf/default/router_solicitation_delay
echo "0 2147483647" >/proc/sys/net/ipv4/ping_group_range

# has MAC prints the name of the interface with it.
has() {
	for d in /sys/class/net/*; do
		read -r a <"$d/address"
		[ "$a" = "$1" ] && echo "${d##*/}" && return
	done
	echo "init: no interface $1" >&2
	return 1
}
# rename MAC NAME TEMPORARY: as its name may be another's still, the other waits under a temporary one.
rename() {
	now=$(has "$1") && [ "$now" != "$2" ] || return
	[ -e "/sys/class/net/$2" ] && ip link set "$2" name "$3"
	ip link set "$now" name "$2"
}
# sysctl FILE VALUE, where the kernel has it.
set_sys() { [ -e "/proc/sys/$1" ] && echo "$2" >"/proc/sys/$1"; }
# dhcp NAME METRIC HOSTNAME
dhcp() {
	metric=$2 udhcpc -i "$1" -f -t 8 -T 1 -A 2 -S -O mtu -O search -x "hostname:$3" -s /etc/udhcpc -p "/run/udhcpc.$1.pid" >"/run/udhcpc.$1.log" 2>&1 &
}
# routes tries for a while: a gateway may be in a network that DHCP or an advertisement tells of. 240 times a quarter of
# a second are a minute.
routes() {
	sh /etc/routes 2>/dev/null || (
		i=0
		until sh /etc/routes 2>/run/routes.log || [ $((i += 1)) -gt 240 ]; do sleep 0.25; done
	) &
}
. /etc/node
[ -n "$trial" ] && echo "trial: up" && poweroff -f
vmnetd-guest-agent $agent &
export PS1="$(hostname):\w# "
cd /root
# One shell after another on the console.
while :; do setsid cttyhack sh; sleep 1; done
