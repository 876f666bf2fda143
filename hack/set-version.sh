#!/usr/bin/env bash
# set-version.sh VERSION - the image that the manifests name: v1.2.3 for a
# release, dev after it.
set -euo pipefail
version=${1:?usage: set-version.sh VERSION}
cd "$(dirname "$0")/.."
[[ $version =~ ^(dev|v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.]+)?)$ ]] || {
	echo "version $version: it has to be vX.Y.Z, vX.Y.Z-SUFFIX or dev" >&2
	exit 1
}

git ls-files -z 'manifests/**/kustomization.yaml' |
	xargs -0 sed -i "/^- name: ghcr.io\/weft-cni\/weft\$/{n;s/newTag: .*/newTag: $version/}"
hack/generate.sh
