#!/usr/bin/env bash
# verify.sh MODULE-DIR ... - fail when a generated file is not what
# `make generate` makes, or a go.mod is not what `go mod tidy` makes. The
# checkout is left alone: generators run in a copy.
set -euo pipefail
cd "$(dirname "$0")/.."
failed=0

for module in "$@"; do
	echo "==> go mod tidy in $module"
	if ! (cd "$module" && go mod tidy -diff); then
		echo "$module: run go mod tidy" >&2
		failed=1
	fi
done

echo '==> generated files'
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z --cached --others --exclude-standard |
	while IFS= read -r -d '' file; do [[ ! -e $file ]] || printf '%s\0' "$file"; done |
	tar --create --null --files-from=- | tar --extract --directory "$copy"
cp -a "$copy" "$copy.before"
trap 'rm -rf "$copy" "$copy.before"' EXIT
(cd "$copy" && hack/generate.sh)
if ! diff --recursive --unified "$copy.before" "$copy"; then
	echo 'generated files are stale: run make generate' >&2
	failed=1
fi
exit $failed
