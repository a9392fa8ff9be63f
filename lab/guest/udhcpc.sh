#!/bin/sh
# What udhcpc runs at each event. /etc/resolv.conf is the lab's if it was there before.
case $1 in
deconfig)
	rm -f "/run/lease.$interface"
	ip -4 addr flush dev "$interface"
	;;
bound | renew)
	[ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
	# A renewed address stays: to take it away for a moment would break what uses it.
	ip -4 addr show dev "$interface" | grep -q " $ip/$mask " || {
		ip -4 addr flush dev "$interface"
		ip -4 addr add "$ip/$mask" broadcast + dev "$interface"
	}
	for r in $router; do ip -4 route replace default via "$r" dev "$interface" metric "$metric"; done
	[ -s /etc/resolv.conf ] && [ ! -e /run/resolv.dhcp ] || {
		: >/run/resolv.dhcp
		s=${search:-$domain}
		{
			[ -n "$s" ] && echo "search $s"
			for d in $dns; do echo "nameserver $d"; done
		} >/etc/resolv.conf
	}
	echo "$ip" >"/run/lease.$interface"
	;;
esac
