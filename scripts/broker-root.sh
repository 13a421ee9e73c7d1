#!/usr/bin/env bash
# Makes the root file system of another Debian with its RabbitMQ, for tests against that: RABBITMQ=DIR/RELEASE.
# usage (as root): scripts/broker-root.sh RELEASE [DIR]
#
# RELEASE is a name of the archive, as trixie; or `newest`, which is testing, else unstable. DIR is target/broker-roots if
# it is not named. Takes a minute or two the first time, and nothing when DIR/RELEASE is there already and was made by
# this very script; remove DIR/RELEASE to have what the mirror offers today. Prints what is in it, as
# "RabbitMQ 4.0.5 on Erlang 27.3.4". A root is made beside its place and moved there whole. No service starts in it, and
# nothing stays mounted.
#
# Needs debootstrap. The mirror is the one that this machine's own apt sources name for its own release; MIRROR overrides it.
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ]; then echo "usage: $0 RELEASE [DIR]" >&2; exit 2; fi
script=$(realpath "$0")
release=$1
dir=$(realpath -m "${2:-$(dirname "$script")/../target/broker-roots}")
root=$dir/$release
new=$dir/$release.new
log=$dir/$release.log
packages=(rabbitmq-server procps)

fail() {
  printf 'broker-root: %s\n' "$1" >&2
  exit 1
}

# What is installed in a root.
describe() {
  local broker erlang
  broker=$(dpkg-query --admindir="$1/var/lib/dpkg" --show --showformat='${source:Upstream-Version}' rabbitmq-server) &&
    erlang=$(dpkg-query --admindir="$1/var/lib/dpkg" --show --showformat='${source:Upstream-Version}' erlang-base) &&
    printf 'RabbitMQ %s on Erlang %s\n' "$broker" "${erlang%%+*}"
}

# fill SUITE: a system of that suite with a broker, in $new.
fill() {
  local install=(env DEBIAN_FRONTEND=noninteractive apt-get -y -o APT::Sandbox::User=root)
  # The mirror of a release under way may stand still for a while. Its signature is still checked.
  install+=(-o Acquire::Check-Valid-Until=false --no-install-recommends)
  rm -rf --one-file-system "$new"
  debootstrap --variant=minbase "$1" "$new" "$mirror" &&
    printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d" &&
    chmod 755 "$new/usr/sbin/policy-rc.d" &&
    printf 'deb %s %s main\n' "$mirror" "$1" >"$new/etc/apt/sources.list" &&
    { mountpoint -q "$new/proc" || mount -t proc proc "$new/proc"; } &&
    chroot "$new" "${install[@]}" update &&
    chroot "$new" "${install[@]}" install "${packages[@]}" &&
    # What no broker reads.
    rm -rf "$new"/var/lib/apt/lists/* "$new"/var/cache/apt/*.bin "$new"/var/cache/apt/archives/*.deb \
      "$new"/usr/share/doc/* "$new"/usr/share/man/* "$new"/usr/share/locale/*
}

# The last thing that went wrong, in one line.
reason() {
  grep -E '^(E|W|Err|dpkg): ?|rror' "$log" | tail -n 1 || true
}

# Its own mounts and processes end with it, however it ends.
if [ "${BROKER_ROOT_APART-}" != yes ]; then
  [ "$(id -u)" -eq 0 ] || fail "making a root needs root"
  command -v debootstrap >/dev/null || fail "debootstrap is not installed"
  BROKER_ROOT_APART=yes exec unshare --mount --pid --fork --kill-child --mount-proc "$script" "$@"
fi

mkdir -p "$dir"
exec 9>"$root.lock"
flock --nonblock 9 || { echo "broker-root: waiting for $root, which is made already" >&2; flock 9; }
made_for=$(sha256sum <"$script")
if [ "$(cat "$root.made-for" 2>/dev/null)" = "$made_for" ] && [ -d "$root" ]; then
  describe "$root"
  exit 0
fi

mirror=${MIRROR:-$("$(dirname "$script")/debian-mirror.sh")} || fail "no mirror is known: set MIRROR"
suites=("$release")
[ "$release" != newest ] || suites=(testing unstable)
rm -f "$root.made-for"
: >"$log"
made=no
for suite in "${suites[@]}"; do
  printf 'broker-root: making %s (%s): a minute or two\n' "$root" "$suite" >&2
  if fill "$suite" >>"$log" 2>&1 </dev/null 9>&-; then made=yes; break; fi
done
if [ "$made" = no ]; then
  umount --recursive "$new/proc" 2>/dev/null || true
  rm -rf --one-file-system "$new"
  fail "no root of $release could be made: $(reason) (its log is $log)"
fi
# Mounted in this namespace only; the root moves without it.
umount --recursive "$new/proc" 2>/dev/null || true
rm -rf --one-file-system "$root"
mv "$new" "$root"
printf '%s\n' "$made_for" >"$root.made-for"
describe "$root"
