#!/usr/bin/env bash
# lint.sh MODULE-DIR ... - vet, formatting (gofumpt) and linters of each
# module. The settings are in .golangci.yml.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

for script in .ci/run hack/*.sh hack/node-image/*.sh hack/node-image/runc-without-resource hack/node-image/node/*.sh test/kind/*.sh; do
	bash -n "$script"
done
echo '==> lint .github/workflows'
# Not with shellcheck, which only some machines have.
CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -trimpath" go tool -modfile=hack/ci/go.mod actionlint -shellcheck= -pyflakes=
for module in "$@"; do
	# The modules that only pin tools hold no packages of their own.
	(cd "$module" && go list ./... 2>/dev/null | grep -q .) || continue
	echo "==> lint $module"
	(
		cd "$module"
		# The flags of the builds, so that both find their work in the cache.
		export CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -trimpath"
		go vet -tags e2e,vm ./...
		"$root/bin/golangci-lint" run --config "$root/.golangci.yml" ./...
	)
done
