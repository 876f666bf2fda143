#!/usr/bin/env bash
# fuzz.sh TIME - run every fuzz target of the module for TIME (go test's
# -fuzztime: 10s, 1m, 1000x).
set -euo pipefail
time=${1:?usage: fuzz.sh TIME}
cd "$(dirname "$0")/.."

found=0
while IFS=: read -r file line; do
	target=${line#func }
	target=${target%%(*}
	found=$((found + 1))
	echo "==> $target in ./$(dirname "$file")"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "./$(dirname "$file")" </dev/null
done < <(git grep --untracked -o -E '^func Fuzz[A-Za-z0-9_]*\(' -- '*_test.go')
if [[ $found -eq 0 ]]; then
	echo 'no fuzz targets' >&2
	exit 1
fi
