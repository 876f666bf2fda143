#!/usr/bin/env bash
# lint.sh MODULE-DIR ... - vet, formatting (gofumpt) and linters of each
# module. The settings are in .golangci.yml.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

for script in .ci/run hack/*.sh; do
	bash -n "$script"
done
for module in "$@"; do
	# The modules that only pin tools hold no packages of their own.
	(cd "$module" && go list ./... 2>/dev/null | grep -q .) || continue
	echo "==> lint $module"
	(
		cd "$module"
		# The flags of the builds, so that vet finds their work in the cache.
		CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -trimpath" go vet ./...
		CGO_ENABLED=0 "$root/bin/golangci-lint" run --config "$root/.golangci.yml" ./...
	)
done
