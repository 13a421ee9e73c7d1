#!/usr/bin/env bash
# Fails when a server that embeds a node gets crates of the daemon's, or one that asks for no rustls gets that: what features
# are for (README.md).
# usage: scripts/check-embedded-crates.sh [CARGO_FLAG...]
set -euo pipefail

read -ra cargo <<<"${CARGO:-cargo}"
of_daemon=(axum clap comfy-table config metrics-exporter-prometheus sd-notify toml tracing-subscriber)
of_rustls=(ring rustls)

# absent FEATURES CRATE...: fails if the library with those features alone is built with one of the crates.
status=0
absent() {
  local features=$1 crates found
  shift
  crates=$("${cargo[@]}" tree --edges normal --prefix none --format '{p}' --package resumed --no-default-features \
    --features "$features" "${flags[@]}" | cut -d' ' -f1 | sort -u)
  grep --quiet --line-regexp lapin <<<"$crates" || { echo 'check-embedded-crates: cargo tree shows no crate of a node' >&2; status=1; }
  found=$(printf '%s\n' "$@" | grep --line-regexp --fixed-strings --file <(echo "$crates") | paste -sd' ') || true
  [ -z "$found" ] || { echo "check-embedded-crates: with the features '$features' it brings $found" >&2; status=1; }
}

flags=("$@")
absent '' "${of_daemon[@]}" "${of_rustls[@]}"
absent rustls "${of_daemon[@]}"
absent daemon "${of_rustls[@]}"
exit $status
