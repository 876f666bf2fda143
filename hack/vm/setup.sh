#!/usr/bin/env bash
# setup.sh - makes ready what vmrun needs, once: QEMU with an emulated igb NIC
# (8.0 or newer), a Debian kernel with netdevsim, and the initramfs that gets
# from it to this machine's own programs. Prints the directory that they are in, below
# ~/.cache/weft/vm (WEFT_VM_CACHE). The kernel is unpacked there, not installed.
#
# WEFT_VM_KERNEL is the kernel's series: 6.12 (the default), or 6.1.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
series=${WEFT_VM_KERNEL:-6.12}
cache=${WEFT_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/weft/vm}
dir=$cache/linux-$series
export PATH=$PATH:/usr/sbin:/sbin

say() { echo "==> $*" >&2; }
die() { echo "hack/vm: $*" >&2; exit 1; }

has_igb() { qemu-system-x86_64 -device help 2>/dev/null | grep '"igb"' >/dev/null; }

# The machine's own Debian mirror, with backports beside it, and with package
# lists of our own: the machine's sources stay as they are.
apt_setup() {
	[[ -z ${apt_ready:-} ]] || return 0
	local codename uri
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	[[ -f /etc/debian_version && -n $codename ]] || die 'this takes Debian; docs/vm.md says what is needed elsewhere'
	uri=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' | awk -v s="$codename" '$1 == s { print $2; exit }')
	uri=${uri:-http://deb.debian.org/debian}
	mkdir -p "$cache"/apt/{lists/partial,sources}
	cat >"$cache/apt/sources/weft.sources" <<-END
		Types: deb
		URIs: $uri
		Suites: $codename $codename-backports
		Components: main
		Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
	END
	apt_options=(
		-qq -o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$cache/apt/sources"
		-o "Dir::State::Lists=$cache/apt/lists" -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache="
		-o "APT::Sandbox::User=$(id -un)" -o DPkg::Lock::Timeout=300
	)
	backports=$codename-backports
	apt-get "${apt_options[@]}" update
	apt_ready=1
}

# unpack PACKAGE DIR - a package's files, without installing it
unpack() {
	local temp
	temp=$(mktemp -d)
	(cd "$temp" && apt-get "${apt_options[@]}" download "$1") || die "can't download $1"
	mkdir -p "$2"
	dpkg-deb -x "$temp"/*.deb "$2"
	rm -rf "$temp"
}

get_qemu() {
	has_igb && return 0
	[[ $(id -u) -eq 0 ]] || die "qemu-system-x86 8.0 or newer is missing"
	apt_setup
	say 'installing qemu-system-x86'
	DEBIAN_FRONTEND=noninteractive apt-get "${apt_options[@]}" install -y --no-install-recommends \
		-t "$backports" qemu-system-x86 >/dev/null
	has_igb || die 'this QEMU emulates no igb NIC'
}

get_kernel() {
	has_kernel && return 0
	apt_setup
	local package image
	package=$(apt-cache "${apt_options[@]}" pkgnames "linux-image-$series" |
		grep -E -- "^linux-image-${series//./\\.}[.][^-]*(-[0-9]+)?-amd64\$" | sort -V | tail -n 1)
	[[ -n $package ]] || die "Debian has no kernel $series for amd64 here"
	say "unpacking $package"
	rm -rf "$dir"
	unpack "$package" "$dir/root"
	[[ ! -d $dir/root/usr/lib/modules ]] || { mkdir -p "$dir/root/lib" && mv "$dir/root/usr/lib/modules" "$dir/root/lib/"; }
	add_netdevsim
	depmod -b "$dir/root" "$(ls "$dir/root/lib/modules")"
	image=$(echo "$dir"/root/boot/vmlinuz-*)
	extract_elf "$image" >"$dir/vmlinux.new"
	mv "$dir/vmlinux.new" "$dir/vmlinux"
}

# The kernel's simulated NIC with an eSwitch, which Debian leaves out: it is
# built, for a minute, with the packages of the kernel's headers and source.
add_netdevsim() {
	local version temp depends package compiler
	version=$(ls "$dir/root/lib/modules")
	say "building netdevsim for $version"
	temp=$(mktemp -d)
	unpack "linux-headers-$version" "$temp"
	depends=$(apt-cache "${apt_options[@]}" show "linux-headers-$version" | sed -n '0,/^Depends: /s/^Depends: //p')
	for package in $(grep -oE 'linux-(headers-[^ ,]*-common|kbuild-[^ ,]*)' <<<"$depends") "linux-source-$series"; do
		unpack "$package" "$temp"
	done
	compiler=$(grep -oE 'gcc-[0-9]+' <<<"$depends")
	"$here/../need.sh" make:make "x86_64-linux-gnu-$compiler:$compiler" >&2
	tar -xJf "$temp"/usr/src/linux-source-*.tar.xz -C "$temp" --strip-components 1 --wildcards '*/drivers/net/netdevsim'
	sed -i "s#include /usr/src#include $temp/usr/src#" "$temp/usr/src/linux-headers-$version/Makefile"
	make -s -C "$temp/usr/src/linux-headers-$version" M="$temp/drivers/net/netdevsim" \
		CONFIG_NETDEVSIM=m CONFIG_DEBUG_INFO_BTF_MODULES= modules >&2
	mkdir -p "$dir/root/lib/modules/$version/extra"
	strip --strip-debug -o "$dir/root/lib/modules/$version/extra/netdevsim.ko" "$temp/drivers/net/netdevsim/netdevsim.ko"
	rm -rf "$temp"
}

has_kernel() { [[ -s $dir/vmlinux ]] && compgen -G "$dir/root/lib/modules/*/extra/netdevsim.ko" >/dev/null; }

# extract_elf BZIMAGE - the kernel proper, which QEMU starts directly (PVH):
# unpacking it in emulation would take seconds. The boot protocol's header says
# where it is (Documentation/arch/x86/boot.rst); its size follows the payload.
extract_elf() {
	number() { od -An -t "u$3" -j "$2" -N "$3" "$1" | tr -d ' '; }
	local start length sectors
	sectors=$(number "$1" $((0x1f1)) 1)
	start=$(((sectors + 1) * 512 + $(number "$1" $((0x248)) 4)))
	length=$(($(number "$1" $((0x24c)) 4) - 4))
	payload() { dd if="$1" iflag=skip_bytes,count_bytes skip="$start" count="$length" bs=1M status=none; }
	case $(od -An -t x1 -j "$start" -N 4 "$1" | tr -d ' ') in
	28b52ffd) payload "$1" | zstd -dc ;;
	fd377a58) payload "$1" | xz -dc ;;
	1f8b*) payload "$1" | gzip -dc ;;
	*) die "$1 is compressed by a method unknown here" ;;
	esac
}

# The initramfs: a static shell and the modules that it takes to see this
# machine's files.
make_initramfs() {
	[[ $dir/initramfs -nt $here/init && $dir/initramfs -nt $dir/vmlinux ]] && return 0
	if [[ ! -x $cache/busybox/bin/busybox ]]; then
		apt_setup
		unpack busybox-static "$cache/busybox"
		[[ -x $cache/busybox/bin/busybox ]] || ln -s usr/bin "$cache/busybox/bin"
	fi
	local tree version n=10 file name
	tree=$(mktemp -d)
	version=$(ls "$dir/root/lib/modules")
	mkdir -p "$tree"/{bin,dev,proc,sys,modules}
	cp "$cache/busybox/bin/busybox" "$tree/bin/"
	ln -s busybox "$tree/bin/sh"
	install -m 755 "$here/init" "$tree/init"
	while read -r file; do
		name=$tree/modules/$n-$(basename "${file%%.ko*}").ko
		n=$((n + 1))
		case $file in
		*.xz) xz -dc "$file" >"$name" ;;
		*.zst) zstd -qdc "$file" >"$name" ;;
		*) cp "$file" "$name" ;;
		esac
	done < <(for module in virtio_pci virtio_console 9pnet_virtio 9p overlay; do
		modprobe -d "$dir/root" -S "$version" --show-depends "$module"
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }')
	(cd "$tree" && find . | cpio -o -H newc --quiet) >"$dir/initramfs.new"
	mv "$dir/initramfs.new" "$dir/initramfs"
	rm -rf "$tree"
}

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9 # vmruns may start at the same time
if ! has_kernel || ! [[ $dir/initramfs -nt $here/init ]] || ! has_igb; then
	"$here/../need.sh" modprobe:kmod cpio:cpio xz:xz-utils zstd:zstd busybox:busybox-static >&2
	get_qemu
	get_kernel
	make_initramfs
fi
echo "$dir"
