#!/bin/sh
# What udhcpc runs at each event: it does as a distribution's script does, and leaves what it was
# told in /run/lease for the test to read.
echo "$1" >>/run/udhcpc.events
case $1 in
deconfig)
	rm -f /run/lease
	ip -4 addr flush dev "$interface"
	;;
bound | renew)
	[ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
	# A renewed address stays: to take it away for a moment would break what uses it.
	ip -4 addr show dev "$interface" | grep -q " $ip/$mask " || {
		ip -4 addr flush dev "$interface"
		ip -4 addr add "$ip/$mask" broadcast + dev "$interface"
	}
	for r in $router; do ip -4 route replace default via "$r" dev "$interface"; done
	{
		s=${search:-$domain}
		[ -n "$s" ] && echo "search $s"
		for d in $dns; do echo "nameserver $d"; done
	} >/run/resolv.conf
	env | grep -v -E '^(PATH|HOME|TERM|PWD|SHLVL|OLDPWD|vm_)' >/run/lease.new
	mv /run/lease.new /run/lease
	;;
esac
