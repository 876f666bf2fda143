#!/usr/bin/env bash
# policy-image.sh OUT - the image of the policy engine that the manifests name, as
# an archive: the published one where it can be pulled, else one of its Go module.
# Prints the file of rules (for nft) that the latter needs on nodes of this
# kernel, if any. The Docker engine is the one that docker uses.
set -euo pipefail
out=$(realpath -m "${1:?usage: policy-image.sh OUT}")
cd "$(dirname "$0")/.."
component=manifests/components/network-policy
name=$(sed -n 's/.*image: //p' $component/daemonset.yaml):$(sed -n 's/.*newTag: //p' $component/kustomization.yaml)

rules=
if ! timeout 60 docker pull --quiet "$name" >/dev/null 2>&1; then
	read -r program rules < <(go run ./test/programs/get policy)
	root=$(mktemp -d)
	trap 'rm -rf "$root"' EXIT
	install -D "$program" "$root/bin/netpol"
	tar --create --directory "$root" --sort=name --owner=0 --group=0 --mtime=@0 . |
		docker import --change 'CMD ["/bin/netpol"]' - "$name" >/dev/null
fi
docker save "$name" --output "$out"
echo "$rules"
