#!/usr/bin/env bash
# Generates deepcopy functions, CRDs and the API client from api/v1alpha1, and
# the flat manifests from the kustomizations. All of it is made aside first, so
# that a failure leaves the tree as it was.
set -euo pipefail
cd "$(dirname "$0")/.."

module=$(go list -m)
api=./api/v1alpha1
client=pkg/client

# With the flags of the builds, so that both find the other's work in the cache.
export CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -trimpath"
tool() { go tool -modfile=hack/tools/go.mod "$@"; }

made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT

echo '==> deepcopy and CRDs'
mkdir -p "$made/$api" "$made/manifests/base/crds"
tool controller-gen object crd paths="$api" \
	output:object:dir="$made/$api" output:crd:dir="$made/manifests/base/crds"

echo '==> clientset, listers and informers'
tool client-gen --input api/v1alpha1 --input-base "$module" --fake-clientset=false \
	--clientset-name versioned --output-dir "$made/$client" --output-pkg "$module/$client"
tool lister-gen --output-dir "$made/$client/listers" --output-pkg "$module/$client/listers" "$api"
tool informer-gen --single-directory --output-dir "$made/$client/informers" --output-pkg "$module/$client/informers" \
	--versioned-clientset-package "$module/$client/versioned" --listers-package "$module/$client/listers" "$api"

for path in api/v1alpha1/zz_generated.deepcopy.go manifests/base/crds "$client"; do
	rm -rf "$path"
	mkdir -p "$(dirname "$path")"
	cp -r "$made/$path" "$path"
done

# flat FILE KUSTOMIZATION - one file for kubectl apply -f
flat() {
	{
		echo "# Made by make generate from $2: changes belong there."
		tool kustomize build "$2"
	} >"$made/flat.yaml"
	mv "$made/flat.yaml" "$1"
}
echo '==> flat manifests'
flat manifests/weft.yaml manifests/base
flat manifests/cleanup.yaml manifests/cleanup
flat manifests/network-policy.yaml manifests/network-policy
flat manifests/encryption.yaml manifests/encryption
