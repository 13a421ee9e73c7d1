#!/usr/bin/env bash
# Makes the Debian packages from what is built: resumed and resumed-trafficserver.
# usage: CARGO_DEB=PATH scripts/make-packages.sh TARGET_FOLDER REVISION
#
# TARGET_FOLDER is Cargo's, with the release build and `examples/manual` in it. The packages go into TARGET_FOLDER/debian.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(realpath "$1") revision=$2
cargo_deb=$(realpath "${CARGO_DEB:?names the cargo-deb to use}")
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
maintainer=$(sed -n 's/^maintainer = "\(.*\)"/\1/p' Cargo.toml)
# The time of the last commit, so that the same source gives the same packages.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
[[ $revision =~ ^[A-Za-z0-9.+~]+$ ]] || { echo "make-packages: REVISION=$revision: letters, digits, '.', '+' and '~' only" >&2; exit 2; }

# Cargo.toml names these without a folder of the build's own: what cargo-deb finds by a glob or a relative path.
made=target/packaging
mkdir -p "$made"
"$target/release/examples/manual" "$made/manual"
gzip --best --no-name --stdout CHANGELOG.md >"$made/changelog.gz"
for package in resumed resumed-trafficserver; do
  gzip --best --no-name --stdout "debian/notices/$package" >"$made/$package.notices.gz"
  cat >"$made/$package.changelog" <<CHANGELOG
$package ($version-$revision) unstable; urgency=medium

  * Packaged from the source; what has changed is in changelog.gz.

 -- $maintainer  $(date --utc --rfc-email --date="@$SOURCE_DATE_EPOCH")
CHANGELOG
done

# cargo-deb removes the packages of other revisions from its own folder, so it gets one to itself, with the build in it.
mkdir -p "$made/target" "$target/debian"
ln --symbolic --force --no-dereference "$target/release" "$made/target/release"
for package in resumed resumed-ats; do
  CARGO_TARGET_DIR=$made/target "$cargo_deb" --no-build --quiet --strip --package "$package" --deb-revision "$revision" --locked >"$made/made"
  mv "$(cat "$made/made")" "$target/debian/"
  echo "$target/debian/$(basename "$(cat "$made/made")")"
done
