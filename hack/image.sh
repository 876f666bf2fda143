#!/usr/bin/env bash
# image.sh VERSION NAME PLATFORM ... - makes the container image bin/image/weft.tar
# of the sources, for platforms such as linux/arm64. What comes out depends on the
# sources, the arguments and the Go release only: SOURCE_DATE_EPOCH and REVISION
# stand for the last commit's where there is no repository.
set -euo pipefail
version=${1:?usage: image.sh VERSION NAME PLATFORM ...} name=$2
shift 2
cd "$(dirname "$0")/.."
created=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
revision=${REVISION:-$(git rev-parse HEAD)}

# The version is set by the linker; what the go command would add of the
# repository differs in an unpacked archive of the same sources.
build() {
	GOOS=$1 GOARCH=$2 CGO_ENABLED=0 GOFLAGS='-trimpath -buildvcs=false' \
		go build -ldflags "-s -w -X main.version=$version" -o "bin/$1-$2/$3" "./cmd/$4"
}
for platform in "$@"; do
	echo "==> $platform"
	build "${platform%/*}" "${platform#*/}" weft plugin
	build "${platform%/*}" "${platform#*/}" weftd daemon
done

(cd hack/image && CGO_ENABLED=0 go build -trimpath -buildvcs=false -o ../../bin/image-maker .)
bin/image-maker -bin bin -out bin/image -goroot "$(go env GOROOT)" -name "$name" \
	-version "$version" -revision "$revision" -created "$created" "$@"
