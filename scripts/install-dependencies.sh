#!/usr/bin/env bash
# Installs the Debian packages that the targets of the Makefile need, and only those that are missing.
# usage: scripts/install-dependencies.sh GROUP...     groups: build, farm, test, lint, deb, hosts, brokers
#
# As root, or through sudo. Says nothing when nothing is missing. Services that come with a newly installed package are
# neither started now nor enabled for the next boot; a service that was on the machine before is left as it is.
set -euo pipefail

packages=()
for group; do
  case $group in
    build) packages+=(
      gcc libc6-dev               # the linker, and the C parts of some crates
      libssl-dev pkg-config       # the openssl crate
    ) ;;
    farm) packages+=(
      openssl                     # certificates
      rabbitmq-server             # the broker
      trafficserver               # the proxy
    ) ;;
    test) packages+=(
      valgrind                    # the plugin's memory
      iproute2                    # networks of a test's own
      chromium chromium-driver    # the page for people, in a browser
      prometheus                  # promtool, for the rules and their tests
      ansible-core                # what the roles' templates become
    ) ;;
    lint) packages+=(
      shellcheck
      ansible-lint                # the roles, with the ansible-core that Debian ships
    ) ;;
    deb) packages+=(
      dpkg-dev binutils           # which libraries a binary needs
      lintian
      man-db groff-base           # the pages,
      bash-completion zsh fish    # the completions
      systemd                     # and the unit, checked
    ) ;;
    hosts) packages+=(
      debootstrap dpkg-dev        # Debian hosts of a test's own, and the packages that they install,
      systemd-container           # booted with systemd,
      iproute2 openssh-client     # reached by SSH,
      haproxy                     # through a load balancer,
      prometheus                  # and watched
    ) ;;
    brokers) packages+=(
      debootstrap                 # other Debians, for their RabbitMQ
    ) ;;
    *) echo "install-dependencies: no group '$group': there are build, farm, test, lint, deb, hosts and brokers" >&2; exit 2 ;;
  esac
done
[ "${#packages[@]}" -gt 0 ] || { echo "install-dependencies: name a group: build, farm, test, lint, deb, hosts or brokers" >&2; exit 2; }
# The services that those packages bring: "package service...".
services=(
  "rabbitmq-server rabbitmq-server.service"
  "erlang-base epmd.service epmd.socket"
  "trafficserver trafficserver.service"
  "prometheus prometheus.service"
  "haproxy haproxy.service"
)
policy=/usr/sbin/policy-rc.d
policy_before=/usr/sbin/policy-rc.d.before-resumed
policy_mark='Temporary, written by install-dependencies.sh of resumed.'
lock=/run/lock/resumed-install-dependencies

fail() {
  printf 'install-dependencies: %s\n' "$1" >&2
  exit 1
}

is_installed() {
  [ "$(dpkg-query --show --showformat='${db:Status-Abbrev}' "$1" 2>/dev/null)" = "ii " ]
}

# Sets `missing`. One dpkg-query for all packages, so that the usual run takes milliseconds.
find_missing() {
  local package installed
  # It exits 1 when it does not know one of the names, which is an answer too.
  installed=" $({ dpkg-query --show --showformat='${db:Status-Abbrev}${binary:Package}\n' "${packages[@]}" 2>/dev/null || true; } |
    sed -n 's/^ii *\([^:]*\).*/\1/p' | tr '\n' ' ')"
  missing=()
  for package in "${packages[@]}"; do
    [[ $installed == *" $package "* ]] || missing+=("$package")
  done
}

# What invoke-rc.d and deb-systemd-invoke ask before they start something: no for the services that are about to be
# installed, and for everything else whatever an existing policy says.
write_policy() {
  local denied
  denied=$(IFS='|' && printf '%s' "${new_services[*]}")
  cat <<POLICY
#!/bin/sh
# $policy_mark
for word in "\$@"; do
  case "\$word" in
    --*) ;;
    ${denied//.service/}|$denied) exit 101 ;;
    *) break ;;
  esac
done
if [ -x $policy_before ]; then exec $policy_before "\$@"; fi
exit 0
POLICY
}

# Whether a policy is in force that keeps new services from starting, as container images ship it.
policy_forbids_starting() {
  local service answer
  [ -x "$policy" ] || return 1
  for service in "${new_services[@]}"; do
    answer=0
    "$policy" "${service%.service}" start >/dev/null 2>&1 || answer=$?
    [ "$answer" -eq 101 ] || return 1
  done
}

put_policy_in_place() {
  if policy_forbids_starting; then return; fi
  if [ -e "$policy" ] || [ -L "$policy" ]; then mv "$policy" "$policy_before"; fi
  write_policy >"$policy"
  chmod 755 "$policy"
}

# Goes by what is there, so that the next run also mends what a run left that was killed with SIGKILL.
restore_policy() {
  if grep --quiet --no-messages --fixed-strings "$policy_mark" "$policy"; then rm -f "$policy"; fi
  if [ -e "$policy_before" ] || [ -L "$policy_before" ]; then mv --no-clobber "$policy_before" "$policy"; fi
}

run_apt() {
  if ! DEBIAN_FRONTEND=noninteractive apt-get --quiet --option DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1 </dev/null 9>&-; then
    cat "$log" >&2
    fail "'apt-get $*' failed; its output stands above"
  fi
}

# A package can start or enable its service in ways that no policy sees.
leave_new_services_stopped() {
  local service
  command -v systemctl >/dev/null || return 0
  for service in "${new_services[@]}"; do
    systemctl disable --quiet "$service" >/dev/null 2>&1 || true   # not every package enables, or has, each of them
    if [ -d /run/systemd/system ] && systemctl is-active --quiet "$service"; then
      systemctl stop "$service" || fail "$service was started by its package and cannot be stopped"
    fi
  done
}

[ -r /etc/os-release ] || fail "this is not Debian: /etc/os-release is missing"
# shellcheck source=/dev/null
distribution=$(. /etc/os-release && printf '%s' "${ID-}")
[ "$distribution" = debian ] ||
  fail "this is '$distribution', not Debian; install what corresponds to these Debian packages: ${packages[*]}"

find_missing
[ "${#missing[@]}" -gt 0 ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null ||
    fail "not root, and there is no sudo: run '$(realpath "$0")' as root, which installs ${missing[*]}"
  exec sudo -- "$(realpath "$0")" "$@"
fi

mkdir -p "$(dirname "$lock")"
exec 9>"$lock"
flock --timeout 900 9 || fail "another run has held $lock for 15 minutes"
find_missing   # that other run may have installed them
[ "${#missing[@]}" -gt 0 ] || exit 0

new_services=()
for entry in "${services[@]}"; do
  read -r package names <<<"$entry"
  if ! is_installed "$package"; then
    read -ra names <<<"$names"
    new_services+=("${names[@]}")
  fi
done

log=$(mktemp)
trap 'restore_policy; rm -f "$log"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

printf 'install-dependencies: installing %s: a minute or two\n' "${missing[*]}" >&2
restore_policy
if [ "${#new_services[@]}" -gt 0 ]; then put_policy_in_place; fi
run_apt update
run_apt install --yes --no-install-recommends "${missing[@]}"
if [ "${#new_services[@]}" -gt 0 ]; then leave_new_services_stopped; fi
