#!/bin/busybox sh
# The first process of a test guest. The kernel puts the words of its command line that it does
# not know into our environment: vm_name, vm_net.
/bin/busybox mount -t devtmpfs dev /dev
export PATH=/bin:/sbin HOME=/ TERM=dumb
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts && mount -t devpts pts /dev/pts
while read -r m; do insmod "/lib/modules/$m" || echo "init: module $m: not loaded"; done </lib/modules/order

hostname "${vm_name:=guest}"
echo "127.0.0.1 localhost $vm_name" >/etc/hosts
echo "::1 localhost $vm_name" >>/etc/hosts
ip link set lo up
# Ask for a router at once, not after up to a second (RFC 4861 section 6.3.7 spreads a whole
# network's guests over it; here is one, and a test that waits).
echo 0 >/proc/sys/net/ipv6/conf/default/router_solicitation_delay
[ -e /sys/class/net/vec0 ] && ip link set vec0 name eth0 # User Mode Linux's card
[ -e /sys/class/net/eth0 ] && {
	echo 0 >/proc/sys/net/ipv6/conf/eth0/router_solicitation_delay
	case $vm_net in
	down) ;;
	none) ip link set eth0 up ;;
	*)
		ip link set eth0 up
		udhcpc -i eth0 -f -t 8 -T 1 -A 2 -S -O mtu -O search -O lease -O ntpsrv \
			-x "hostname:$vm_name" -s /etc/udhcpc -p /run/udhcpc.pid >/run/udhcpc.log 2>&1 &
		;;
	esac
}
mkdir -p /www && echo "hello from $vm_name" >/www/index.html
httpd -p 80 -h /www
guest agent || echo "init: the agent failed"
poweroff -f
