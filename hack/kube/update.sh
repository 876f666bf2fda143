#!/usr/bin/env bash
# update.sh VERSION (v1.37.1) - write go.mod, here and in hack/conformance, for a
# version of Kubernetes.
#
# Kubernetes' own go.mod replaces the modules of its staging directory by local
# paths, which a module that depends on it does not see: its requirements are
# taken over, and the staging modules replaced by their published versions.
# Not every version is whole on the module proxy; this says so.
set -euo pipefail
version=${1:?usage: update.sh VERSION}
staging=v0.${version#v1.}
cd "$(dirname "$0")/.."

mod=$(cd / && GOFLAGS=-mod=mod go mod download -json "k8s.io/kubernetes@$version" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
modules=$(grep -oE '^\s+k8s\.io/[a-z-]+ v0\.0\.0$' "$mod" | awk '{ print $1 }')
# write NAME - the same versions in each, so that packages are compiled once
write() {
	{
		echo "module github.com/weft-cni/weft/hack/$1"
		echo
		grep -E '^(go|godebug) ' "$mod"
		echo
		echo "require k8s.io/kubernetes $version"
		# Everything it requires, at its versions, but the staging modules.
		awk '/^require \(/ { p = 1 } p { print } /^\)/ { p = 0 }' "$mod" |
			sed 's# // indirect##' | grep -vE '^\s+k8s\.io/[a-z-]+ v0\.0\.0$'
		echo "replace ("
		for module in $modules; do echo "	$module => $module $staging"; done
		echo ")"
		echo "require ("
		for module in $modules; do echo "	$module $staging"; done
		echo ")"
	} >"$1/go.mod.new"
	mv "$1/go.mod.new" "$1/go.mod"
	(cd "$1" && go mod tidy)
}
write kube
write conformance
(cd kube && go list -deps ./garbage-collector k8s.io/kubernetes/cmd/kube-apiserver go.etcd.io/etcd/server/v3 >/dev/null)
(cd conformance && go list -deps -test k8s.io/kubernetes/test/e2e >/dev/null)
