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
maintainer=$(sed -n 's/^maintainer: //p' contrib/package/nfpm.yaml)
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
	mv "$TREE/CHANGELOG.md" "$TREE/doc/changelog"
	gzip -9n "$TREE/doc/changelog"
	cat >"$work/changelog.Debian" <<-END
		vmnetd ($PACKAGE_VERSION-1) unstable; urgency=medium

		  * What changed is in changelog.gz.

		 -- $maintainer  $(LC_ALL=C date -Rud "@$SOURCE_DATE_EPOCH")
	END
	gzip -9nc "$work/changelog.Debian" >"$work/changelog.Debian.gz"
	mkdir -p "$TREE/deb"
	cp "$work/changelog.Debian.gz" contrib/package/lintian-overrides "$TREE/deb/"
	cp contrib/package/vmnetd.yaml "$TREE/"
	# Modes and times are ours, not those of the folder that the source was fetched into.
	chmod -R u=rwX,go=rX "$TREE"
	find "$TREE/doc" "$TREE/deb" "$TREE/vmnetd.yaml" -type f -exec chmod 644 {} +
	find "$TREE" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
	for kind in deb rpm; do
		cp contrib/package/nfpm.yaml "$work/"
		[ $kind = rpm ] || sed -i '/^license:/d' "$work/nfpm.yaml" # a deb's is in its copyright file
		$go run "$nfpm" package -f "$work/nfpm.yaml" -p "$kind" -t "$out/" </dev/null
	done
done
