#!/usr/bin/env bash
# Fails when a crate that ships is built with a feature that only tests, the demo or an example ask for: then what ships
# would differ from what is tested, or every crate would be compiled twice.
# usage: scripts/check-shipped-features.sh [CARGO_FLAG...]
set -euo pipefail

read -ra cargo <<<"${CARGO:-cargo}"
# Lines are "NAME vVERSION [FEATURE,...]".
list() {
  "${cargo[@]}" tree --prefix none --format '{p} [{f}]' "$@" | sed -E 's/ \(\*\)$//; s/ \(\/[^)]*\)//' | sed '/^$/d' | sort --unique
}
shipped=$(list --edges normal --package resumed --package resumed-ats "$@")
# Of what is built for the tests, only the crates that ship.
built=$(list --edges normal,dev "$@" | grep --fixed-strings --file <(sed -E 's/^([^ ]+ [^ ]+).*/\1 /' <<<"$shipped"))
if difference=$(diff <(echo "$shipped") <(echo "$built")); then exit 0; fi
echo "check-shipped-features: the crates on the right are built with other features for the tests than for what ships on the left:" >&2
echo "$difference" >&2
exit 1
