#!/usr/bin/env bash
# build.sh - a node image for kind where no registry can be reached: of Debian
# packages and Go modules. It prints the image's name, and makes it where the
# engine (engine.sh) doesn't have it. Needs root, for debootstrap.
set -euo pipefail
cd "$(dirname "$0")"
root=$PWD/../..
cache=${XDG_CACHE_HOME:-$HOME/.cache}/weft/node-image
# Debian's engine has the old builder only.
docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT=0

version=$(sed -n 's#^require k8s.io/kubernetes ##p' ../kube/go.mod)
# Everything that goes into the image has its word in its name.
digest=$(cat build.sh rootfs.sh images.sh pick.sh go.mod coredns/* node/* ../kube/go.mod ../cni/go.mod |
	sha256sum | cut -c-12)
name=weft-node:$version-$digest
if docker image inspect "$name" >/dev/null 2>&1; then
	echo "$name"
	exit
fi

get() { (cd "$root" && go run ./test/programs/get "$1"); }
../need.sh gcc:gcc,libc6-dev jq:jq >&2
KUBERNETES=$(get kubernetes)
NODE=$(get node)
plugins=$(get plugins)
export KUBERNETES NODE
mkdir -p "$cache"

rootfs=$cache/rootfs-$(sha256sum rootfs.sh | cut -c-12)
if [[ ! -d $rootfs ]]; then
	echo '==> a Debian for the nodes' >&2
	./rootfs.sh "$rootfs"
fi
debian=weft-${rootfs##*/}:bookworm
if ! docker image inspect "$debian" >/dev/null 2>&1; then
	tar -C "$rootfs" -c . | docker import - "$debian" >/dev/null
fi

work=$(mktemp -d)
node=
clean() {
	[[ -z $node ]] || docker rm --force --volumes "$node" >/dev/null
	rm -rf "$work"
}
trap clean EXIT

echo '==> images of the cluster' >&2
./images.sh "$rootfs" "$work/images.tar"

echo "==> the node image $name" >&2
files=$work/root
kind=$(go list -m -f '{{ .Dir }}' sigs.k8s.io/kind)
mkdir -p "$files"/{kind/manifests,usr/bin,usr/local/bin,opt/cni/bin,etc/kubernetes/manifests,LICENSES}
cp -r "$kind"/images/base/files/. "$files/"
# The modes that kind's own Dockerfile gives them.
find "$files" -type d -exec chmod 755 {} +
find "$files" -type f -exec chmod 644 {} +
cp "$KUBERNETES"/{kubeadm,kubelet,kubectl} "$files/usr/bin/"
cp "$NODE"/{containerd,containerd-shim-runc-v2,ctr,crictl} "$files/usr/local/bin/"
cp "$plugins"/* "$files/opt/cni/bin/"
cp node/storage.yaml "$files/kind/manifests/default-storage.yaml"
cp node/fit-machine.sh "$files/kind/bin/"
chmod 755 "$files"/usr/local/bin/* "$files"/kind/bin/*
echo -n "$version" >"$files/kind/version"

# change FILE SED-EXPRESSION... - the file has to have what is changed
change() {
	local file=$1
	shift
	sed "$@" "$file" >"$file.new"
	if cmp -s "$file" "$file.new"; then
		echo "${file#"$files"} of kind has changed: $*" >&2
		exit 1
	fi
	cat "$file.new" >"$file"
	rm "$file.new"
}
change "$files/usr/local/bin/entrypoint" 's#^fix_cgroup$#&\n/kind/bin/fit-machine.sh#'
pause=$("$KUBERNETES/kubeadm" config images list --kubernetes-version "$version" | grep /pause:)
change "$files/etc/containerd/config.toml" "s#registry.k8s.io/pause:[0-9.]*#$pause#"

cp node/Dockerfile "$work/"
docker build --quiet --build-arg ROOTFS="$debian" --tag weft-node:base "$work" >/dev/null

# The images go into containerd's store, as kind's own build does it.
node=$(docker run --detach --security-opt seccomp=unconfined --entrypoint sleep weft-node:base infinity)
docker exec --detach "$node" containerd --log-level warn
until docker exec "$node" ctr version >/dev/null 2>&1; do sleep 0.2; done
docker exec --interactive "$node" ctr --namespace k8s.io images import --all-platforms --no-unpack --digests - <"$work/images.tar" >/dev/null
docker exec "$node" sh -c 'kill "$(pidof containerd)"; while pidof containerd >/dev/null; do sleep 0.1; done; rm -rf /run/containerd'
docker commit --change 'ENTRYPOINT [ "/usr/local/bin/entrypoint", "/sbin/init" ]' "$node" "$name" >/dev/null
# Those of before, but for what clusters use.
docker image ls --format '{{ .Repository }}:{{ .Tag }}' weft-node | grep -vF "$name" |
	xargs --no-run-if-empty docker image rm >/dev/null 2>&1 || true
echo "$name"
