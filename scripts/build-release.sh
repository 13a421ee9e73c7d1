#!/usr/bin/env bash
# Builds the packages of the last commit twice, from nothing and in two folders, shows that they are the same bit for bit, and
# writes them with a bill of materials and their digests.
# usage: CARGO_DEB=PATH CARGO_CYCLONEDX=PATH scripts/build-release.sh FOLDER
#
# FOLDER is made anew. DRAFT=1 also builds a version whose section in CHANGELOG.md is not closed yet.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
out=$(realpath -m "$1")
work=$(realpath -m "${CARGO_TARGET_DIR:-target}/release-build")
CARGO_DEB=$(realpath "${CARGO_DEB:?names the cargo-deb to use}")
cyclonedx=$(realpath "${CARGO_CYCLONEDX:?names the cargo-cyclonedx to use}")
read -ra cargo <<<"${CARGO:-cargo}"
# Cargo's tools read this too, and take it for a program.
export CARGO=${cargo[0]}
cargo_home=${CARGO_HOME:-$HOME/.cargo}
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)

fail() {
  echo "build-release: $1" >&2
  exit 1
}

[ -z "$(git status --porcelain)" ] || fail "there are changes that are not committed; a release is a commit"
grep --quiet --extended-regexp "^## \[${version//./\\.}\] - [0-9]{4}-[0-9]{2}-[0-9]{2}$" CHANGELOG.md || [ -n "${DRAFT-}" ] ||
  fail "CHANGELOG.md has no section '## [$version] - DATE'; close it first, or say DRAFT=1"

# What both builds have in common, and all that they have in common: the commit, its time, the toolchain and the registry's
# sources. The folders have names of different length, so that a path that got in would show.
commit=$(git rev-parse HEAD)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH CARGO_DEB
# What was said on make's command line reaches a make within it by these.
unset CARGO_TARGET_DIR MAKEFLAGS MAKEOVERRIDES
copies=("$work/one" "$work/another-folder")
rm -rf "$work" "$out"
for copy in "${copies[@]}"; do
  mkdir -p "$copy"
  git archive "$commit" | tar --extract --directory "$copy"
  printf '==> building %s in %s: about 5 min\n' "$version" "$copy"
  RUSTFLAGS="--remap-path-prefix=$copy=/usr/src/resumed --remap-path-prefix=$cargo_home=/usr/src/cargo" \
    make --directory "$copy" --no-print-directory deb REVISION=1 CARGO="${cargo[*]}" >"$copy.log" 2>&1 ||
    { tail -n 30 "$copy.log" >&2; fail "the build in $copy failed; its log is $copy.log"; }
done

for package in "${copies[0]}"/target/debian/*.deb; do
  other=${copies[1]}/target/debian/$(basename "$package")
  cmp --silent "$package" "$other" && continue
  for side in "$package" "$other"; do dpkg-deb --raw-extract "$side" "$side.content"; done
  diff --recursive --brief "$package.content" "$other.content" >&2 || true
  fail "the two builds of $(basename "$package") differ, in what is listed above"
done

mkdir -p "$out"
cp "${copies[0]}"/target/debian/*.deb "$out/"
# One for each package. The tool writes beside each manifest, and names components by the folder that it ran in.
(cd "${copies[0]}" && "$cyclonedx" cyclonedx --format json --spec-version 1.5 --no-build-deps --quiet)
# bill FILE CRATE PACKAGE
bill() {
  local to=$out/$3_$version.cdx.json
  sed "s|${copies[0]}|/usr/src/resumed|g" "${copies[0]}/$1.cdx.json" >"$to"
  (cd "${copies[0]}" && "${cargo[@]}" tree --locked --edges normal --prefix none --no-dedupe --package "$2") | scripts/reduce-bill.py "$to"
}
bill resumed resumed resumed
bill ats-plugin/resumed-ats resumed-ats resumed-trafficserver
{
  printf 'commit %s\n' "$commit"
  printf '%s\n' "$("${cargo[@]}" --version)" "$(rustc --version)" "$(gcc --version | head -n 1)"
  dpkg-query --show --showformat '${Package} ${Version}\n' libssl-dev libc6-dev dpkg-dev
} >"$out/built-with.txt"
(cd "$out" && sha256sum -- *.deb *.cdx.json built-with.txt >SHA256SUMS)
printf '==> both builds are the same bit for bit; %s has:\n' "$out"
cat "$out/SHA256SUMS"
