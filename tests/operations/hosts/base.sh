#!/usr/bin/env bash
# Makes the root file system that test hosts are overlays of: a Debian on which nothing of a farm is installed yet.
# usage (as root): tests/operations/hosts/base.sh DIR RELEASE [PACKAGE...]     RELEASE is bookworm (Debian 12) or trixie (Debian 13)
#
# DIR/RELEASE gets systemd, python3 with python3-apt, an SSH server and sudo: what Ansible expects to find. Its only source
# of packages is the folder /srv/apt within it, with what a farm's hosts and the host that controls them install
# (rabbitmq-server; on Debian 12 trafficserver and ansible-core too; and all that these depend on) and each PACKAGE named
# besides. So hosts without any network beyond their own install with apt as they would elsewhere.
#
# Takes some minutes the first time, and nothing when DIR/RELEASE is there already and was made for the same packages by
# this very script. Never changes a base in place: overlays of the old one must not be up when it is made anew.
# Needs debootstrap and dpkg-dev. The mirrors are those that this machine's own apt sources name for the release, else for
# its own release, if they can be reached by http or https from within the base too; MIRROR and SECURITY_MIRROR override them.
set -euo pipefail

usage() { echo "usage: $0 DIR bookworm|trixie [PACKAGE...]" >&2; exit 2; }
[ $# -ge 2 ] || usage
dir=$(realpath -m "$1")
# The Debian of the hosts, whichever this machine runs.
codename=$2
shift 2
case $codename in
  bookworm) offered=(rabbitmq-server trafficserver ansible-core openssh-client adduser libssl3 curl "$@") ;;
  trixie) offered=(rabbitmq-server adduser libssl3t64 curl "$@") ;;   # it has no trafficserver
  *) usage ;;
esac
mirror_of=$(dirname "${BASH_SOURCE[0]}")/../../../scripts/debian-mirror.sh
# shellcheck source=/dev/null
own=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME-}")
mirror=${MIRROR:-$("$mirror_of" "$codename" 2>/dev/null || "$mirror_of" "$own" 2>/dev/null || true)}
security=${SECURITY_MIRROR:-$("$mirror_of" "$codename-security" 2>/dev/null || "$mirror_of" "$own-security" 2>/dev/null || true)}
missing() { echo "$0: the apt sources of this machine name no http or https mirror of $2, main: run 'apt-get update', or set $1" >&2; exit 1; }
[ -n "$mirror" ] || missing MIRROR "$codename"
[ -n "$security" ] || missing SECURITY_MIRROR "$codename-security"
system=systemd,systemd-sysv,dbus,python3-minimal,python3-apt,iproute2,ca-certificates,openssl,openssh-server,sudo

base=$dir/$codename
new=$base.new
log=$base.log
made_for=$(printf '%s\n' "$mirror" "$security" "$system" "${offered[@]}" | cat - "${BASH_SOURCE[0]}" | sha256sum)
mkdir -p "$dir"
exec 9>"$base.lock"
flock 9
if [ "$(cat "$base.made-for" 2>/dev/null)" = "$made_for" ] && [ -d "$base" ]; then exit 0; fi

if grep -q " $base\| lowerdir=$base\|,lowerdir=$base" /proc/mounts; then
  echo "$0: $base is in use by hosts that are up; take them down first" >&2
  exit 1
fi
# A run that was stopped may have left half a system, with nothing mounted in it.
rm -rf "$new" "$base" "$base.made-for"

if ! {
  debootstrap --variant=minbase --include="$system" "$codename" "$new" "$mirror" &&
  printf 'deb %s main\n' "$mirror $codename" "$mirror $codename-updates" "$security $codename-security" \
    >"$new/etc/apt/sources.list" &&
  # Whatever the sandbox of apt's own user may not reach, root may.
  chroot "$new" apt-get update &&
  chroot "$new" env DEBIAN_FRONTEND=noninteractive apt-get -y -o APT::Sandbox::User=root upgrade &&
  mkdir -p "$new/srv/apt/partial" &&
  chroot "$new" apt-get -y -o APT::Sandbox::User=root -o Dir::Cache::archives=/srv/apt/ --no-install-recommends \
    install --download-only "${offered[@]}" &&
  rm -rf "$new/srv/apt/partial" "$new/srv/apt/lock" &&
  (cd "$new/srv/apt" && dpkg-scanpackages --multiversion . >Packages) &&
  rm -rf "$new"/var/lib/apt/lists/* "$new"/var/cache/apt/archives/*.deb &&
  echo 'deb [trusted=yes] file:/srv/apt ./' >"$new/etc/apt/sources.list" &&
  chroot "$new" apt-get update
} >"$log" 2>&1 </dev/null; then
  tail -n 30 "$log" >&2
  echo "$0: the base could not be made; its log is $log" >&2
  exit 1
fi
# Each host makes its own.
rm -f "$new"/etc/ssh/ssh_host_*
: >"$new/etc/machine-id"
mv "$new" "$base"
printf '%s\n' "$made_for" >"$base.made-for"
