#!/usr/bin/env bash
# need.sh PROGRAM:PACKAGE[,PACKAGE...] ... - make sure that programs are there.
# On Debian, as root, missing ones are installed; elsewhere they are named. All
# that it says goes to stderr: some that need programs print what others read.
set -euo pipefail

packages=()
programs=()
for need in "$@"; do
	program=${need%%:*}
	if ! PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null; then
		programs+=("$program")
		packages+=(${need#*:})
	fi
done
[[ ${#programs[@]} -gt 0 ]] || exit 0

packages=(${packages[@]//,/ })
if [[ $(id -u) -eq 0 && -f /etc/debian_version ]]; then
	echo "==> installing ${packages[*]} (for ${programs[*]})" >&2
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	apt-get install -qq -y -o DPkg::Lock::Timeout=300 --no-install-recommends "${packages[@]}" >/dev/null
else
	echo "missing: ${programs[*]}; on Debian: apt-get install ${packages[*]}" >&2
	exit 1
fi
