#!/usr/bin/env bash
# image-check.sh VERSION NAME PLATFORM ... - tests what makes the image, and makes
# it of two copies of the sources, in other places and circumstances: both have
# to be the same byte by byte.
set -euo pipefail
cd "$(dirname "$0")/.."

echo '==> testing hack/image'
(cd hack/image && CGO_ENABLED=0 go test -count=1 ./...)

copies=$(mktemp -d)
trap 'rm -rf "$copies"' EXIT
export SOURCE_DATE_EPOCH REVISION
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
REVISION=$(git rev-parse HEAD)
mkdir "$copies/one"
git ls-files -z --cached --others --exclude-standard |
	while IFS= read -r -d '' file; do [[ ! -e $file ]] || printf '%s\0' "$file"; done |
	tar --create --null --files-from=- | tar --extract --directory "$copies/one"
cp --recursive "$copies/one" "$copies/another"

echo '==> making the image in one place'
"$copies/one/hack/image.sh" "$@"
echo '==> making it in another'
(
	umask 077
	TZ=Asia/Tokyo LC_ALL=C "$copies/another/hack/image.sh" "$@"
)
diff --brief --recursive "$copies/one/bin/image" "$copies/another/bin/image"
echo '==> the same, byte by byte'
