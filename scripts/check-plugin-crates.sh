#!/usr/bin/env bash
# Fails when the ATS plugin links a crate that it should not: it runs inside somebody else's server, so it brings no async
# runtime, no broker client, and no TLS library beside the server's own.
# usage: scripts/check-plugin-crates.sh [CARGO_FLAG...]
set -euo pipefail

# Every crate that may end up in libresumed_ats.so. Procedural macros and build scripts do not.
allowed=" arraydeque bytes hashbrown libc openssl-sys prost saphyr-parser thiserror zeroize "

# The tree of all that is built together: features that the daemon asks of a crate that both use are
# on in the plugin as well. Lines are "DEPTH NAME vVERSION ...".
read -ra cargo <<<"${CARGO:-cargo}"
tree=$("${cargo[@]}" tree --no-dedupe --edges normal,no-proc-macro --prefix depth --format ' {p}' "$@")
crates=$(awk '$1 == 0 { plugin = $2 == "resumed-ats"; next } plugin { print $2 }' <<<"$tree" | sort -u)
if [ -z "$crates" ]; then
  echo "check-plugin-crates: cargo tree shows no dependency of resumed-ats; was the package renamed?" >&2
  exit 1
fi
unexpected=()
for crate in $crates; do
  [[ $allowed == *" $crate "* ]] || unexpected+=("$crate")
done
if [ "${#unexpected[@]}" -gt 0 ]; then
  echo "check-plugin-crates: the plugin would link ${unexpected[*]}; if ATS should carry that, add it to 'allowed' here" >&2
  exit 1
fi
