#!/usr/bin/env bash
# Holds the crates that are built against a local copy of RustSec's advisory database. Fetches nothing.
# usage: scripts/check-advisories.sh DIR
#   DIR: a clone of https://github.com/RustSec/advisory-db; empty: says NOT CHECKED. One of more than 90 days ago is refused.
#   CARGO_DENY: cargo-deny, of the release in the Makefile
set -euo pipefail
directory=${1-}
[ -z "$directory" ] || directory=$(realpath "$directory")
cd "$(dirname "$0")/.."

if [ -z "$directory" ]; then
  echo '==> advisories: NOT CHECKED: ADVISORIES names no clone of the advisory database'
  exit 0
fi
if [ ! -d "$directory/crates" ]; then
  echo "check-advisories: $directory is no clone of the advisory database: it has no folder \"crates\"" >&2
  exit 2
fi

folder=$(mktemp --directory)
trap 'rm -rf "$folder"' EXIT
# Below the folder that the configuration names, cargo-deny looks for a name made of the database's URL. Another one is an error.
ln -s "$directory" "$folder/advisory-db-3157b0e258782691"
sed "s|^\[advisories\]\$|&\ndb-path = \"$folder\"|" deny.toml >"$folder/deny.toml"
"$CARGO_DENY" --offline --workspace --config "$folder/deny.toml" check --hide-inclusion-graph advisories
echo "==> advisories: none by $directory, whose last one is of $(git -C "$directory" log -1 --format=%cs)"
