#!/usr/bin/env bash
# conformance.sh VARIANT - Kubernetes' own tests of a network, on a kind cluster
# of that variant (IPv4, IPv6, dual) with Weft. VERSION and IMAGE are as for make
# image.
#
#   SETS=...            of conformance, network, policy; all of them
#   FOCUS=, SKIP=       regular expressions for names, on top of the sets
#   ENCRYPT=1           with encryption between nodes
#   KEEP=1              leave the cluster there, and use it if it is there
#   CLUSTER=name        of the kind cluster
#   PROCS=n             specs at a time; 3
set -euo pipefail
cd "$(dirname "$0")/.."
variant=$1
cluster=${CLUSTER:-weft-conformance}
out=$PWD/bin/conformance
script=test/kind/cluster.sh
manifest=weft.yaml
[[ ${ENCRYPT:-} == '' ]] || manifest=encryption.yaml
sets=${SETS:-conformance network policy}
mkdir -p "$out"

step() { printf '%6d s  %s\n' "$SECONDS" "$*"; }
run() { "$script" run "$cluster" "$@"; }

step "Kubernetes' tests"
programs=$(go run ./test/programs/get conformance)
hack/node-image/engine.sh up
eval "$(hack/node-image/engine.sh env)"

up() {
	step 'Weft'
	hack/image.sh "$VERSION" "$IMAGE" "linux/$(go env GOARCH)" >/dev/null
	cp bin/image/weft.tar "$out/weft.tar"
	step "the cluster $cluster"
	"$script" down "$cluster"
	"$script" up "$cluster" "$variant"
	"$script" load "$cluster" "$out/weft.tar"
	run kubectl apply --server-side --filename "$PWD/manifests/$manifest" >/dev/null
	run kubectl wait --for=condition=Ready nodes --all --timeout=120s >/dev/null
	run kubectl --namespace kube-system rollout status deployment/coredns --timeout=120s >/dev/null
}
finish() {
	if [[ ${KEEP:-} == '' ]]; then
		"$script" down "$cluster" 2>/dev/null || true
	else
		echo "The cluster stays: eval \"\$($script env $cluster)\", and $script run $cluster CMD"
	fi
}
trap finish EXIT
if [[ ${KEEP:-} == '' ]] || ! run kubectl get --raw /readyz >/dev/null 2>&1; then up; fi

# specs SET - as a filter for labels. network are those that leave the cluster as
# it is, and ask for nothing that it doesn't have.
specs() {
	local features='IPv6DualStack, SCTPConnectivity' sctp=''
	[[ $variant == dual ]] || features=SCTPConnectivity
	if ! docker exec "$cluster-worker" sh -c 'modprobe -q sctp; grep -q ^SCTP /proc/net/protocols'; then
		sctp=' && !(Feature: containsAny SCTPConnectivity)' # their pods would wait for it for ten minutes each
	fi
	case $1 in
	conformance) echo 'sig-network && Conformance' ;;
	network) echo "sig-network && !Conformance && !Disruptive && !Serial && !Slow && Feature: isSubsetOf {$features}$sctp" ;;
	policy) echo "sig-network && Feature: containsAny NetworkPolicy$sctp" ;;
	*) echo "there is no set $1" >&2; return 1 ;;
	esac
}

dirs=()
for set in $sets; do
	if [[ $set == policy ]]; then
		rules=$(hack/policy-image.sh "$out/policy.tar")
		"$script" load "$cluster" "$out/policy.tar"
		if [[ -n $rules ]]; then
			for node in $(run kind get nodes --name "$cluster"); do
				docker exec --interactive "$node" nft --file - <"$rules"
			done
		fi
		run kubectl apply --server-side --filename "$PWD/manifests/network-policy.yaml" >/dev/null
		run kubectl --namespace kube-system rollout status daemonset/kube-network-policies --timeout=120s >/dev/null
	fi
	step "the set $set"
	filter=$(specs "$set")
	rm -rf "${out:?}/$set"
	mkdir -p "$out/$set"
	dirs+=("$out/$set")
	run "$programs/ginkgo" --procs="${PROCS:-3}" --no-color --timeout=60m --label-filter="$filter" \
		${FOCUS:+--focus="$FOCUS"} ${SKIP:+--skip="$SKIP"} "$programs/e2e.test" -- \
		--provider=skeleton --num-nodes=2 --allowed-not-ready-nodes=0 --report-dir="$out/$set" >"$out/$set/log" 2>&1 || true
	tail -n 20 "$out/$set/log" | grep -E '^(Ran|PASS|FAIL|SUCCESS|Ginkgo ran)' || true
done
go run ./test/conformance "${dirs[@]}" | tee "$out/report.md"
step 'done'
