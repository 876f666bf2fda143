#!/usr/bin/env bash
# release.sh VERSION PLATFORM ... - the files of a release, in bin/release, of the
# image and the binaries that image.sh has made: the same bytes each time. The
# manifests have to name that version already: set-version.sh.
set -euo pipefail
version=${1:?usage: release.sh VERSION PLATFORM ...}
shift
cd "$(dirname "$0")/.."
created=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
out=bin/release

rm -rf "$out" bin/release-notes.md
mkdir -p "$out"

for manifest in manifests/*.yaml; do
	if grep 'image: ghcr.io/weft-cni/weft:' "$manifest" | grep --invert-match --quiet ":$version\$"; then
		echo "$manifest names another image than $version: run hack/set-version.sh $version" >&2
		exit 1
	fi
	cp "$manifest" "$out/"
done

# The changelog's section of this version.
awk -v heading="## [${version#v}]" '
	index($0, heading) == 1 { found = 1; next }
	found && /^## / { exit }
	found { print }
	END { if (!found) exit 1 }
' CHANGELOG.md >bin/release-notes.md || {
	echo "CHANGELOG.md has no section ## [${version#v}]" >&2
	exit 1
}

pack() { # pack FILE DIRECTORY
	tar --create --directory "$2" --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
		--mtime="@$created" --format=ustar . | gzip --no-name --best >"$1"
}
for platform in "$@"; do
	name=${platform/\//-}
	content=$(mktemp -d)
	cp "bin/$name/weft" "bin/$name/weftd" LICENSE "$content/"
	cp --recursive bin/image/licenses "$content/licenses"
	pack "$out/weft-$version-$name.tar.gz" "$content"
	rm -rf "$content"
	cp "bin/image/sbom-$name.json" "$out/weft-$version-$name.cdx.json"
done
cp bin/image/weft.tar "$out/weft-$version-image.tar"
sums=$(cd "$out" && sha256sum -- *)
echo "$sums" >"$out/SHA256SUMS"
cat "$out/SHA256SUMS"
