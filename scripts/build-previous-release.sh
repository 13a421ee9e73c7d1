#!/usr/bin/env bash
# Builds the release before this one, whose commit tests/previous-release names: a peer for the tests of this one.
# usage: CARGO=cargo CARGO_FLAGS=--locked scripts/build-previous-release.sh TARGET_FOLDER release|debug
#    or: CARGO_DEB=PATH scripts/build-previous-release.sh TARGET_FOLDER packages
#    or: scripts/build-previous-release.sh TARGET_FOLDER check
#
# `check` builds nothing: it fails if this clone lacks the commit.
# TARGET_FOLDER is Cargo's, with a build of this tree in it: what that has of crates from the registry is taken over, so
# that little more is compiled than the crates of the project itself. All is kept in TARGET_FOLDER/previous-release, and
# nothing is done when it is there already. The last line on standard output is the folder with the daemon and the
# plugin, or with the two Debian packages.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# = 2 ] || { echo "usage: $0 TARGET_FOLDER release|debug|packages|check" >&2; exit 2; }
mkdir -p "$1"
target=$(realpath "$1") what=$2
read -ra cargo <<<"${CARGO:-cargo}"
# Cargo's tools read this too, and take it for a program.
export CARGO=${cargo[0]}
commit=$(<tests/previous-release)
kept=$target/previous-release
home=$kept/$commit
say() { printf 'previous release: %s\n' "$*" >&2; }

# Fails if this clone lacks the commit.
check() {
  if ! git cat-file -e "$commit^{commit}"; then
    say "$commit, which tests/previous-release names, is not in this clone." \
      "A shallow clone lacks it: git fetch --unshallow, or git fetch origin $commit"
    exit 1
  fi
}

# The source as it was, at $home/tree. Of an older one than that nothing stays.
unpack() {
  check
  [ -d "$home/tree" ] && return
  find "$kept" -mindepth 1 -maxdepth 1 -type d -exec rm -rf {} +
  mkdir -p "$home/tree.part"
  git archive "$commit" | tar --extract --directory "$home/tree.part"
  mv "$home/tree.part" "$home/tree"
}

# Copies what the build of this tree has of crates from the registry, with its times, by which Cargo tells that it is
# fresh. Copies and no links: a build writes into files in place.
take_over() {
  local from=$target/$1 into=$home/build/$1
  rm -rf "$into"
  mkdir -p "$into/deps" "$into/build" "$into/.fingerprint"
  [ -d "$from/.fingerprint" ] || return 0
  # The project's own, whose paths differ, and programs, which are large.
  local own='/(lib)?(resumed|session|testkit|farm)[-_][^/]*$'
  find "$from/deps" -maxdepth 1 -regextype posix-extended \
    -regex '.*/lib.*\.(rlib|rmeta|so)|.*\.d' -not -regex ".*$own" -exec cp --archive --target-directory "$into/deps" {} +
  for part in build .fingerprint; do
    find "$from/$part" -mindepth 1 -maxdepth 1 -regextype posix-extended -not -regex ".*$own" \
      -exec cp --archive --target-directory "$into/$part" {} +
  done
}

build() {
  local profile=$1 made_by start=$SECONDS
  local -a options=()
  # What the two profiles have to have in common, for crates to be taken over; the development profile of a release
  # may be another than this tree's.
  case $profile in
    # A peer, of which nothing is measured: a third of the time for its own crate.
    release) options=(--release --config 'profile.release.package.resumed.opt-level=0') ;;
    debug) options=(--config 'profile.dev.debug="line-tables-only"') ;;
  esac
  made_by=$("${cargo[@]}" --version; rustc --version --verbose)
  if [ "$(cat "$home/$profile.made-by" 2>/dev/null)" = "$made_by" ]; then return; fi
  unpack
  say "building $(version) (${commit:0:12}): about 1 min"
  take_over "$profile"
  # Packages by name: the crates of its tests and benchmark are not needed.
  # shellcheck disable=SC2086
  (cd "$home/tree" && CARGO_TARGET_DIR=$home/build "${cargo[@]}" build "${options[@]}" ${CARGO_FLAGS---locked} \
    --package resumed --package resumed-ats >&2) || {
    say "$(version) was not built, see above. It has a Cargo.lock of its own, and without a network (--offline) Cargo" \
      "builds it only if all crates of that have been fetched: run" \
      "'${cargo[*]} fetch --locked --manifest-path $home/tree/Cargo.toml' once with a network"
    exit 1
  }
  printf '%s\n' "$made_by" >"$home/$profile.made-by"
  say "built in $((SECONDS - start)) s"
}

version() { sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$home/tree/Cargo.toml"; }

# By the script and the cargo-deb of its own, as that release was packaged. The manual pages alone are those of this
# tree: what makes them asks for crates that nothing else here needs.
package() {
  local cargo_deb
  cargo_deb=$(realpath "${CARGO_DEB:?names the cargo-deb to use}")
  build release
  if [ "$home/build/debian/made" -nt "$home/release.made-by" ]; then return; fi
  mkdir -p "$home/build/release/examples"
  ln --symbolic --force "$target/release/examples/manual" "$home/build/release/examples/manual"
  local made_at
  made_at=$(git log -1 --format=%ct "$commit")
  (cd "$home/tree" && SOURCE_DATE_EPOCH=$made_at CARGO_DEB=$cargo_deb \
    scripts/make-packages.sh "$home/build" 1 >&2)
  touch "$home/build/debian/made"
}

if [ "$what" = check ]; then
  check
  exit
fi
mkdir -p "$home"
# Tests of one run may come at once.
exec 9>"$kept/lock"
flock 9
case $what in
  release | debug) build "$what" ;;
  packages) package ;;
  *) echo "$0: $what: release, debug, packages or check" >&2; exit 2 ;;
esac
echo "$home/build/${what/packages/debian}"
