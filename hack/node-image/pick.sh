#!/usr/bin/env bash
# pick.sh ROOT DEST FILE ... - copy files of a Debian, each with what it links to
# and the shared libraries that it needs.
set -euo pipefail
root=$1 dest=$2
shift 2
for dir in bin sbin lib lib64; do
	mkdir -p "$dest/usr/$dir"
	[[ -e $dest/$dir ]] || ln -s "usr/$dir" "$dest/$dir"
done

# copy PATH - link by link
copy() {
	local path=$1 dir target
	while :; do
		dir=$(chroot "$root" readlink -f "$(dirname "$path")")
		path=$dir/$(basename "$path")
		mkdir -p "$dest$dir"
		[[ -e $dest$path || -L $dest$path ]] || cp -a "$root$path" "$dest$path"
		[[ -L $root$path ]] || return 0
		target=$(readlink "$root$path")
		case $target in
		/*) path=$target ;;
		*) path=$dir/$target ;;
		esac
	done
}

for pattern in "$@"; do
	for file in "$root"$pattern; do
		file=${file#"$root"}
		copy "$file"
		libraries=$(chroot "$root" ldd "$file" 2>/dev/null | grep -oE '/[^ ]+' || true)
		for library in $libraries; do copy "$library"; done
	done
done
