#!/usr/bin/env bash
# rootfs.sh DIR - the Debian that nodes are made of, and its tools those images
# that have any. bookworm: the last with a systemd that runs on cgroup v1 too.
set -euo pipefail
dir=$1
../need.sh debootstrap:debootstrap

node=systemd,systemd-sysv,dbus,conntrack,iptables,nftables,iproute2,ethtool,util-linux,mount,kmod,libseccomp2
node+=,pigz,bash,ca-certificates,curl,jq,procps,runc,ipset,e2fsprogs
tools=bind9-dnsutils,netcat-openbsd,iperf,busybox,wget,socat,iputils-ping,tcpdump

# The machine's own mirror, where it is a Debian.
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
	grep -oE 'https?://[^ ]+/debian/?( |$)' | head -1 | tr -d ' ' || true)

rm -rf "$dir.new"
debootstrap --variant=minbase --include="$node,$tools" bookworm "$dir.new" "${mirror:-http://deb.debian.org/debian}" >&2
(
	cd "$dir.new"
	rm -rf var/cache/apt/archives/*.deb var/lib/apt/lists/* usr/share/{doc,man,locale,info}/* var/log/*.log
	: >etc/apt/sources.list
	rm -f etc/apt/apt.conf.d/*proxy*
)
rm -rf "$dir"
mv "$dir.new" "$dir"
