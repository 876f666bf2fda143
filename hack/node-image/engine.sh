#!/usr/bin/env bash
# engine.sh up        make sure that there is a Docker engine
# engine.sh env       shell commands that make docker use it
# engine.sh run CMD   run CMD where its networks are, and so that docker uses it
# engine.sh down      stop the engine, if it was up that started it
#
# An engine that works is used as it is. Where there is none it is installed
# (Debian, root), which is asked for first, unless CI or INSTALL=yes is set; where
# no service manager starts it then, up does. The engine that up starts keeps all
# it has in Weft's cache and in /run/weft-engine, and lives in a network namespace
# of its own wherever it can't pull images anyway: its bridges and rules touch
# nothing of the machine's.
set -euo pipefail
cd "$(dirname "$0")"
run=/run/weft-engine
namespace=weft-engine
data=${XDG_CACHE_HOME:-$HOME/.cache}/weft/engine

answers() { docker info >/dev/null 2>&1; }

ours() { [[ -f $run/pid && -d /proc/$(<"$run/pid") ]]; }

# in_engine CMD... - run CMD where our engine is
in_engine() {
	if [[ -e /run/netns/$namespace ]]; then
		# Not ip netns exec, which would hide the cgroups below /sys.
		nsenter --net="/run/netns/$namespace" env DOCKER_HOST="unix://$run/docker.sock" "$@"
	else
		env DOCKER_HOST="unix://$run/docker.sock" "$@"
	fi
}

registry_in_reach() { timeout 3 bash -c '</dev/tcp/registry-1.docker.io/443' 2>/dev/null; }

install() {
	if [[ ${CI:-} == '' && ${INSTALL:-} != yes ]]; then
		if [[ ! -t 0 ]]; then
			echo 'there is no Docker engine: install one, or say INSTALL=yes' >&2
			exit 1
		fi
		read -rp 'There is no Docker engine. Install it, and start it where nothing else does? [y/N] ' answer
		[[ $answer == [yY]* ]] || exit 1
	fi
	../need.sh dockerd:docker.io
}

# missing_resource - this machine's root lacks CAP_SYS_RESOURCE (24), without
# which runc can't make a privileged container.
missing_resource() { (((0x$(awk '/^CapBnd:/ { print $2 }' /proc/self/status) >> 24 & 1) == 0)); }

# close_inherited - what the caller has open, a lock that it holds for one, isn't
# the engine's to keep
close_inherited() {
	local fd
	for fd in /proc/self/fd/*; do
		fd=${fd##*/}
		if ((fd > 2 && fd != 255)); then eval "exec $fd>&-"; fi # 255 is bash's own
	done
}

start() {
	echo '==> starting a Docker engine' >&2
	mkdir -p "$run" "$data"
	if missing_resource; then
		jq -n --arg path "$PWD/runc-without-resource" \
			'{runtimes: {less: {path: $path}}, "default-runtime": "less"}' >"$run/daemon.json"
	else
		echo '{}' >"$run/daemon.json"
	fi
	if ! registry_in_reach; then
		ip netns add $namespace
		ip -n $namespace link set lo up
	fi
	(
		close_inherited
		in_engine setsid nohup dockerd --config-file "$run/daemon.json" --data-root "$data" --exec-root "$run/exec" \
			--pidfile "$run/pid" --host "unix://$run/docker.sock"
	) >"$run/log" 2>&1 </dev/null &
	for ((i = 0; i < 150; i++)); do
		if in_engine docker info >/dev/null 2>&1; then return; fi
		sleep 0.2
	done
	tail -20 "$run/log" >&2
	echo 'the Docker engine did not start' >&2
	exit 1
}

case ${1:-} in
up)
	if ours || answers; then exit 0; fi
	command -v dockerd >/dev/null || install
	if answers; then exit 0; fi
	../need.sh ip:iproute2 jq:jq nsenter:util-linux
	start
	;;
env)
	if ours; then echo "export DOCKER_HOST=unix://$run/docker.sock"; fi
	;;
run)
	shift
	if ours; then in_engine "$@"; else "$@"; fi
	;;
down)
	if ours; then
		pid=$(<"$run/pid")
		kill "$pid"
		while [[ -d /proc/$pid ]]; do sleep 0.2; done
	fi
	if [[ -e /run/netns/$namespace ]]; then ip netns del $namespace; fi
	rm -rf "$run"
	;;
*)
	sed -n '2,5s/^# //p' "$0" >&2
	exit 2
	;;
esac
