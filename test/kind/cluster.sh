#!/usr/bin/env bash
# cluster.sh up NAME IPv4|IPv6|dual   a kind cluster without a network for its pods
# cluster.sh load NAME FILE ...       bring images (archives) to its nodes
# cluster.sh down NAME
# cluster.sh env NAME                 shell commands that make kubectl, docker and kind use it
# cluster.sh run NAME CMD ...         run CMD with that, where the cluster can be reached
#
# One control plane and two workers. The node image is the published one of this
# kind where it can be pulled, else that of hack/node-image.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
engine=$root/hack/node-image/engine.sh
usage() {
	sed -n '2,6s/^# //p' "$0" >&2
	exit 2
}
[[ $# -ge 2 ]] || usage
command=$1 name=$2
shift 2
state=${XDG_CACHE_HOME:-$HOME/.cache}/weft/kind/$name
export KUBECONFIG=$state/kubeconfig

get() { (cd "$root" && go run ./test/programs/get "$1"); }

# in_cluster CMD ... - with kind and kubectl
in_cluster() {
	PATH=$(get node):$(<"$state/kubectl"):$PATH "$engine" run "$@"
}

# node_image - the image to make nodes of; empty for kind's own
node_image() {
	local published
	published=$(cd "$root/hack/node-image" && sed -n 's/^const Image = "\(.*\)"/\1/p' \
		"$(go list -m -f '{{ .Dir }}' sigs.k8s.io/kind)/pkg/apis/config/defaults/image.go")
	if docker image inspect "$published" >/dev/null 2>&1 || timeout 300 docker pull --quiet "$published" >/dev/null 2>&1; then
		echo "$published"
	else
		"$root/hack/node-image/build.sh"
	fi
}

# config VARIANT
config() {
	local family pods services proxy
	case $1 in
	IPv4) family=ipv4 pods=10.244.0.0/16 services=10.96.0.0/16 proxy=iptables ;;
	IPv6) family=ipv6 pods=fd00:10:244::/56 services=fd00:10:96::/112 proxy=nftables ;;
	dual) family=dual pods=10.244.0.0/16,fd00:10:244::/56 services=10.96.0.0/16,fd00:10:96::/112 proxy=nftables ;;
	*) usage ;;
	esac
	cat <<-END
		kind: Cluster
		apiVersion: kind.x-k8s.io/v1alpha4
		networking:
		  disableDefaultCNI: true
		  ipFamily: $family
		  apiServerAddress: 127.0.0.1
		  kubeProxyMode: $proxy
		  podSubnet: $pods
		  serviceSubnet: $services
		kubeadmConfigPatches:
		- |
		  kind: KubeletConfiguration
		  failCgroupV1: false
		nodes:
		- role: control-plane
		- role: worker
		- role: worker
	END
}

case $command in
up)
	[[ $# -eq 1 ]] || usage
	"$engine" up
	eval "$("$engine" env)"
	image=$(node_image)
	mkdir -p "$state"
	get kubectl >"$state/kubectl"
	config "$1" >"$state/config.yaml"
	echo "$image" >"$state/image"
	in_cluster kind create cluster --name "$name" --image "$image" --config "$state/config.yaml" --wait 0s
	;;
load)
	for archive in "$@"; do in_cluster kind load image-archive --name "$name" "$archive"; done
	;;
down)
	if [[ -d $state ]]; then
		in_cluster kind delete cluster --name "$name"
		rm -rf "$state"
	fi
	;;
env)
	echo "export KUBECONFIG=$KUBECONFIG PATH=$(get node):$(<"$state/kubectl"):\$PATH"
	"$engine" env
	;;
run)
	in_cluster "$@"
	;;
*) usage ;;
esac
