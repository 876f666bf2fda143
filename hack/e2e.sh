#!/usr/bin/env bash
# e2e.sh VARIANT - the end-to-end tests on a kind cluster of that variant: IPv4,
# IPv6 or dual. VERSION and IMAGE are as for make image.
#
#   E2E=short     leave out what takes minutes
#   KEEP=1        leave the cluster there
#   ENCRYPT=1     with encryption between nodes
#   STEPS=...     a regular expression: the steps to take
#   CLUSTER=name  of the kind cluster
set -euo pipefail
cd "$(dirname "$0")/.."
variant=$1
cluster=${CLUSTER:-weft-${variant,,}${ENCRYPT:+-encrypted}}
out=$PWD/bin/e2e
script=test/kind/cluster.sh
mkdir -p "$out"

step() { printf '%6d s  %s\n' "$SECONDS" "$*"; }
archive() { # archive NAME FILE - of the root in $out/root
	(cd "$out/root" && tar --sort=name --owner=0 --group=0 --mtime=@0 -c .) |
		docker import --change "ENTRYPOINT [\"$3\"]" - "$1" >/dev/null
	docker save "$1" -o "$2"
	rm -rf "$out/root"
}

step 'a Docker engine'
hack/node-image/engine.sh up
eval "$(hack/node-image/engine.sh env)"

step 'Weft, this one and another to upgrade to'
architecture=$(go env GOARCH)
hack/image.sh "$VERSION" "$IMAGE" "linux/$architecture" >/dev/null
cp bin/image/weft.tar "$out/weft.tar"
next=${IMAGE%:*}:next
hack/image.sh "$VERSION-next" "$next" "linux/$architecture" >/dev/null
mv bin/image/weft.tar "$out/next.tar"

step 'the tests and what they run in pods'
CGO_ENABLED=0 go test -c -trimpath -tags e2e -o "$out/e2e.test" ./test/kind
mkdir -p "$out/root"
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$out/root/peer" ./test/kind/peer
archive weft-e2e/peer:dev "$out/peer.tar" /peer
multus=$(go run ./test/programs/get multus)
mkdir -p "$out/root/usr/src/multus-cni/bin"
cp "$multus/multus" "$out/root/usr/src/multus-cni/bin/"
cp "$multus/thin_entrypoint" "$out/root/"
archive "$(sed -n 's/.*image: \(.*multus-cni\)$/\1/p' manifests/components/multus/daemonset.yaml):$(
	sed -n 's/.*newTag: //p' manifests/components/multus/kustomization.yaml)" "$out/multus.tar" /thin_entrypoint

rules=$(hack/policy-image.sh "$out/policy.tar")

step "the cluster $cluster"
"$script" down "$cluster"
finish() {
	if [[ ${KEEP:-} == '' ]]; then
		"$script" down "$cluster" 2>/dev/null || true
	else
		echo "The cluster stays: eval \"\$($script env $cluster)\", and $script run $cluster CMD"
	fi
}
trap finish EXIT
"$script" up "$cluster" "$variant"
step 'images to its nodes'
"$script" load "$cluster" "$out"/{weft,next,peer}.tar

step 'the tests'
flags=(-test.v -test.count=1 -test.timeout=60m -e2e.dump="$out/$cluster" -e2e.next="$next" -e2e.multus="$out/multus.tar"
	-e2e.policy="$out/policy.tar" -e2e.policy-rules="$rules")
[[ ${E2E:-} != short ]] || flags+=(-e2e.short)
[[ ${ENCRYPT:-} == '' ]] || flags+=(-e2e.encrypted)
[[ ${STEPS:-} == '' ]] || flags+=("-test.run=TestE2E/($STEPS)")
rm -rf "${out:?}/$cluster"
(cd test/kind && ../../"$script" run "$cluster" "$out/e2e.test" "${flags[@]}")
step "all of it works: $variant"
