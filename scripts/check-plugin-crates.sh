#!/usr/bin/env bash
# Fails when the ATS plugin links a crate that it should not: it runs inside somebody else's server, so it brings no async
# runtime, no broker client, and no TLS library beside the server's own.
# usage: scripts/check-plugin-crates.sh [CARGO_FLAG...]
set -euo pipefail

# Every crate that may end up in libresumed_ats.so. Procedural macros and build scripts do not.
allowed=" resumed-ats bytes libc openssl-sys prost zeroize "

crates=$("${CARGO:-cargo}" tree --package resumed-ats --edges normal,no-proc-macro --prefix none --format '{p}' "$@" |
  cut -d ' ' -f 1 | sort -u)
[[ $crates == *resumed-ats* ]] || { echo "check-plugin-crates: cargo tree does not know resumed-ats" >&2; exit 1; }
unexpected=()
for crate in $crates; do
  [[ $allowed == *" $crate "* ]] || unexpected+=("$crate")
done
if [ "${#unexpected[@]}" -gt 0 ]; then
  echo "check-plugin-crates: the plugin would link ${unexpected[*]}; if ATS should carry that, add it to 'allowed' here" >&2
  exit 1
fi
