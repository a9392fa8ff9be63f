#!/bin/sh
# Makes packages for Debian and RPM systems in a folder, the same bit for bit wherever the same commit is built.
#
#   contrib/package/build.sh [FOLDER [PROCESSOR]...]     default: dist amd64 arm64
set -eu
cd "$(dirname "$0")/../.."
go=${GO:-go}
nfpm=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.0 # pinned: what it makes is compared bit for bit

out=${1:-dist}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- amd64 arm64
umask 022
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

read -r _ PACKAGE_VERSION SOURCE_DATE_EPOCH <<-END
	$($go run ./contrib/release -version)
END
export PACKAGE_VERSION SOURCE_DATE_EPOCH
for ARCH in "$@"; do
	TREE=$work/$ARCH
	export ARCH TREE
	$go run ./contrib/release -tree "$TREE" "linux/$ARCH"
	mkdir -p "$TREE/man" "$TREE/doc"
	find "$TREE/man" -type f -exec gzip -9n {} +
	mv "$TREE/README.md" "$TREE/SECURITY.md" "$TREE/THIRD-PARTY-LICENSES" "$TREE/doc/"
	mkdir "$TREE/doc/examples"
	mv "$TREE/contrib/grafana" "$TREE/doc/examples/"
	cp contrib/package/copyright "$TREE/doc/copyright"
	gzip -9nc "$TREE/CHANGELOG.md" >"$TREE/doc/changelog.gz"
	cp contrib/package/vmnetd.yaml "$TREE/"
	# Modes and times are ours, not those of the folder that the source was fetched into.
	chmod -R u=rwX,go=rX "$TREE"
	find "$TREE/doc" "$TREE/vmnetd.yaml" -type f -exec chmod 644 {} +
	find "$TREE" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
	for kind in deb rpm; do
		$go run "$nfpm" package -f contrib/package/nfpm.yaml -p "$kind" -t "$out/" </dev/null
	done
done
