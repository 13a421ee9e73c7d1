#!/usr/bin/env bash
# The inputs of the fuzz targets: an archive for each, fuzz/corpus/NAME.tar, which `tar` lists and unpacks as well.
# usage: scripts/fuzz-corpus.sh list NAME...            each input: archive, bytes, name
#        scripts/fuzz-corpus.sh unpack FOLDER NAME...   into FOLDER/NAME, which is made anew
#        scripts/fuzz-corpus.sh pack FOLDER NAME...     from FOLDER/NAME
#        scripts/fuzz-corpus.sh check NAME...           fails if `pack` would write an archive otherwise than it is
#
# The same inputs give the same archive, on any machine and at any time. It is not compressed: so Git keeps what a change adds and
# no more, and a diff of two lists shows which inputs those are.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "fuzz-corpus: $*" >&2
  exit 1
}

archive() { echo "fuzz/corpus/$1.tar"; }

# write FOLDER ARCHIVE: by name, and with nothing of who owns the files and when they were written.
write() {
  [ -d "$1" ] || fail "there is no folder $1"
  local other
  other=$(cd "$1" && find . -mindepth 1 \( -not -type f -o -not -regex '\./[A-Za-z0-9][A-Za-z0-9._-]*' \) -print -quit)
  [ -z "$other" ] || fail "$1/$other: inputs are plain files, named with letters, digits, '.', '_' and '-'"
  (cd "$1" && find . -type f -printf '%P\n' | LC_ALL=C sort) |
    tar --create --file="$2" --directory="$1" --files-from=- --format=ustar --blocking-factor=1 \
      --owner=0 --group=0 --numeric-owner --mode=0644 --mtime=@0
}

list() {
  tar --list --verbose --numeric-owner --file="$(archive "$1")" | awk -v of="$1" '{ printf "%-12s %8d %s\n", of, $3, $6 }'
}

unpack() {
  rm -rf "${1:?}/$2"
  mkdir -p "$1/$2"
  tar --extract --no-same-owner --file="$(archive "$2")" --directory="$1/$2"
}

pack() {
  write "$1/$2" "$(archive "$2").part"
  mv "$(archive "$2").part" "$(archive "$2")"
}

check() {
  local work
  work=$(mktemp --directory)
  # shellcheck disable=SC2064  # what it is now
  trap "rm -rf '$work'" EXIT
  unpack "$work" "$1"
  write "$work/$1" "$work/$1.tar"
  cmp --silent "$work/$1.tar" "$(archive "$1")" || fail "$(archive "$1") is not as 'pack' writes it"
  rm -rf "$work"
}

folder=()
case ${1-} in
  list | check) [ $# -ge 2 ] && do=$1 && shift ;;
  unpack | pack) [ $# -ge 3 ] && do=$1 folder=("$2") && shift 2 ;;
esac
[ -n "${do-}" ] || { sed -n 's/^# usage: //p; s/^#        scripts/scripts/p' "$0" >&2; exit 2; }
for name in "$@"; do
  "$do" "${folder[@]}" "$name"
done
