#!/usr/bin/env bash
# Installs, upgrades, breaks, removes and purges the packages on a booted Debian host, and checks what each step leaves.
# usage: package_lifecycle.sh FOLDER [PREVIOUS.deb...]     as root on a host of its own that may be spoilt: nothing is put back
#
# FOLDER has revisions 1 and 2 of resumed and, for a host with Traffic Server, of resumed-trafficserver. PREVIOUS are the same
# packages of release 0.1.0: with them, an upgrade from there, the way back and up again are shown as well. The host has systemd, python3, man and
# whatever else the packages depend on. Prints each check; exits 1 at the first that fails.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
folder=$(realpath "$1")
shift
previous=("$@")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
config=/etc/resumed/resumed.toml

step() { printf '\n# %s\n' "$1"; }

# check WHAT COMMAND...: the command must succeed.
check() {
  local what=$1
  shift
  if "$@" >"$scratch/said" 2>&1; then
    printf 'ok    %s\n' "$what"
  else
    printf 'FAILS %s\n      %s\n' "$what" "$*"
    cat "$scratch/said"
    systemctl status --no-pager --lines=30 resumed.service || true
    exit 1
  fi
}

# is WHAT WANTED COMMAND...: the command must print exactly that.
is() {
  local what=$1 wanted=$2 found
  shift 2
  found=$("$@" 2>&1) || true
  check "$what: $wanted" test "$found" = "$wanted"
}

# soon WHAT COMMAND...: the command must succeed within a minute.
soon() {
  local what=$1 turns=0
  shift
  until "$@" >/dev/null 2>&1; do
    turns=$((turns + 1))
    [ "$turns" -lt 300 ] || break
    sleep 0.2
  done
  check "$what" "$@"
}

not() { ! "$@"; }
the() { systemctl show --value --property "$1" resumed.service; }
# The text may be a pattern.
# shellcheck disable=SC2053
says() { [[ $(the StatusText) == $1 ]]; }
active() { [ "$(systemctl is-active resumed.service)" = active ]; }
ready_with() { active && says "$1"; }
status() { resumed status --json | python3 -c "import json, sys; status = json.load(sys.stdin); print($1)"; }
active_generation() { status 'next(key["generation"] for key in status["ring"]["keys"] if key["state"] == "active")'; }
proxy_connected() { [ "$(status 'len(status["nodes"][0]["proxies"])')" = 1 ]; }
logged() { journalctl --no-pager --quiet --unit resumed.service --since "$since" | grep -F -- "$1"; }
restarted() { local now; now=$(the MainPID); [ "$now" != 0 ] && [ "$now" != "$pid" ]; }
file() { stat --format '%a %U:%G' "$1"; }
logged_by_this_process() {
  journalctl --no-pager --quiet "_SYSTEMD_INVOCATION_ID=$(the InvocationID)" | grep -F -- "$1"
}
package_state() { dpkg-query --show --showformat '${db:Status-Status} ${Version}' "$1"; }
metrics_at() { exec 3<>"/dev/tcp/$1/9464" && printf 'GET /healthz HTTP/1.0\r\n\r\n' >&3 && grep -q ' 200 ' <&3; }
# Everything that a package could leave behind.
inventory() {
  { find /etc /usr /opt /srv /run/resumed /var/lib/systemd -not -path '*/__pycache__*' 2>/dev/null || true; } | sort
}
# as USER GROUP COMMAND...: as a user who is in that one group besides.
as() { setpriv --reuid "$1" --regid nogroup --groups "$(getent group "$2" | cut -d: -f3)" "${@:3}"; }
as_nobody() { setpriv --reuid nobody --regid nogroup --clear-groups "$@"; }
in_group() { id --groups --name "$1" | tr ' ' '\n' | grep -qx "$2"; }
secret_id() { status 'status["nodes"][0]["secret_ids"]'; }
reloads() { logged "read the farm secrets again" | wc --lines; }
is_another_secret() { [ "$(secret_id)" != "$1" ]; }
set_config() { printf '%s\n' "$@" >"$config.new" && cat "$config.new" >"$config" && rm "$config.new"; }

# Whether the host has Traffic Server, which Debian 13 lacks.
has_proxy() { [ -d /etc/trafficserver ]; }
# is_installed FILE...: the package in each is the one that the host has.
is_installed() {
  local file name
  for file; do
    name=$(dpkg-deb --field "$file" Package)
    is "$name" "installed $(dpkg-deb --field "$file" Version)" package_state "$name"
  done
}
# The files in FOLDER of this revision that the host can install.
revision() {
  printf '%s\n' "$folder"/resumed_*-"$1"_*.deb
  if has_proxy; then printf '%s\n' "$folder"/resumed-trafficserver_*-"$1"_*.deb; fi
}
mapfile -t first < <(revision 1)
mapfile -t second < <(revision 2)

since=$(date '+%Y-%m-%d %H:%M:%S')
inventory >"$scratch/before"
if has_proxy; then plugin_config=$(sha256sum /etc/trafficserver/plugin.config); fi

step "install"
dpkg --install "${first[@]}" >"$scratch/install" 2>&1 || { cat "$scratch/install"; exit 1; }
if has_proxy; then
  check "the plugin's line is shown" grep -F 'resumed.so --socket=/run/resumed/ats.sock' "$scratch/install"
  is "Traffic Server's configuration is untouched" "$plugin_config" sha256sum /etc/trafficserver/plugin.config
fi
check "the user is a system user" test "$(id --user resumed)" -lt 1000
is "with a group of its own" resumed id --group --name resumed
check "without a password" grep -E '^resumed:[!*]' /etc/shadow
check "without a shell" grep -E '^resumed:.*:/usr/sbin/nologin$' /etc/passwd
check "and without a home" not test -e "$(getent passwd resumed | cut -d: -f6)"
is "/etc/resumed" "750 root:resumed" file /etc/resumed
is "$config" "640 root:resumed" file "$config"
is "it starts at boot" enabled systemctl is-enabled resumed.service
soon "it runs, alone, with a key of its own" ready_with "leader, generation *, 1 member, 1 in step"
is "as its own user" resumed stat --format %U "/proc/$(the MainPID)"
is "the ring is on a tmpfs" tmpfs stat --file-system --format %T /run/resumed
soon "and is saved there" test -s /run/resumed/ring
is "to be read by the daemon alone" "600 resumed:resumed" file /run/resumed/ring
check "the daemon's user understands the configuration" runuser -u resumed -- resumed check
check "root asks for the status" resumed status
is "the control socket has a group of its own" "660 resumed:resumed-control" file /run/resumed/control.sock
is "which no secret is given to, and without members" "" sh -c 'getent group resumed-control | cut -d: -f4'
check "its members ask for the status, without reading the configuration" as nobody resumed-control resumed status
check "which they may not" not as nobody resumed-control cat "$config"
check "and no other user asks" not as_nobody resumed status --socket /run/resumed/control.sock
check "metrics are served" metrics_at 127.0.0.1
check "the unit has no fault" systemd-analyze verify resumed.service
is "nor anything to remark" "" systemd-analyze verify resumed.service
check "its exposure is 1.5 or less" systemd-analyze security --no-pager --threshold=15 resumed.service
for page in resumed resumed-status resumed-secret-new resumed.toml; do
  check "man $page" man "$page"
done

if has_proxy; then
  step "Traffic Server takes the plugin"
  echo 'resumed.so --socket=/run/resumed/ats.sock --wait-ms=1000' >>/etc/trafficserver/plugin.config
  systemctl restart trafficserver.service
  soon "a proxy is connected" proxy_connected
fi

step "a farm secret, and a broker that is not there yet"
resumed secret new /etc/resumed/farm.secret
chown root:resumed /etc/resumed/farm.secret
chmod 640 /etc/resumed/farm.secret
generation=$(active_generation)
set_config '[broker]' 'uris = ["amqp://resumed@broker.invalid:5672/%2f"]' '[secret]' 'files = ["/etc/resumed/farm.secret"]'
pid=$(the MainPID)
systemctl restart resumed.service
check "it is another process" restarted
soon "it is up without broker and without its name" ready_with "no broker: generation $generation"
check "the ring outlived the restart" logged "took up the ring of the last run"
systemctl reload resumed.service
soon "reload reads root's secret with the service's rights" logged "read the farm secrets again"
soon "and it is active again" active
pid=$(the MainPID)
chmod 644 /etc/resumed/farm.secret
check "a reload fails when the daemon refuses a secret" not systemctl reload resumed.service
soon "systemctl status says so" says "RELOAD REFUSED, *mode 0644*"
is "the daemon goes on" "$pid" the MainPID
chmod 640 /etc/resumed/farm.secret
check "a reload succeeds when it takes it" systemctl reload resumed.service
soon "and systemctl status says nothing of it any more" says "no broker: generation $generation"
check "who asks for the status does not read the secret" not as nobody resumed-control cat /etc/resumed/farm.secret
check "but asks" as nobody resumed-control resumed status
check "who is in no group does neither" not as_nobody cat /etc/resumed/farm.secret
check "nor the other" not as_nobody resumed status --socket /run/resumed/control.sock
check "the check has no warning" sh -c '! runuser -u resumed -- resumed check | grep warning'
check "nor has root's" sh -c '! resumed check | grep warning'
check "nor the daemon" not logged "may be read by the group"

step "a secret that others read"
# Not every tool of every Debian takes a name with a dash.
adduser --quiet --system --no-create-home alice-b
adduser --quiet alice-b resumed
check "the check names them" sh -c 'runuser -u resumed -- resumed check | grep "more members than the daemon.s user: alice-b"'
systemctl reload resumed.service
soon "and so does the daemon" logged "may be read by the group resumed, which has more members than the daemon's user: alice-b"
gpasswd --delete alice-b resumed >/dev/null
chmod 644 /etc/resumed/farm.secret
check "what every user reads is refused" not runuser -u resumed -- resumed check
for mode in 400 440; do
  chown resumed:resumed /etc/resumed/farm.secret
  chmod "$mode" /etc/resumed/farm.secret
  check "what is tighter is taken: $mode" runuser -u resumed -- resumed check
done
chown root:resumed /etc/resumed/farm.secret
chmod 640 /etc/resumed/farm.secret

step "a secret that systemd hands over"
mkdir -p /run/systemd/system/resumed.service.d
printf '[Service]\nLoadCredential=farm.secret:/etc/resumed/farm.secret\nEnvironment=RESUMED__SECRET__FILES=%%d/farm.secret\n' \
  >/run/systemd/system/resumed.service.d/credentials.conf
systemctl daemon-reload
# The daemon's own group does not read it any more.
chmod 600 /etc/resumed/farm.secret
id=$(secret_id)
systemctl restart resumed.service
soon "it runs with the secret of before" ready_with "no broker: generation $generation"
is "which is" "$id" secret_id
check "though its user cannot read the file" not runuser -u resumed -- cat /etc/resumed/farm.secret
rm /etc/resumed/farm.secret
resumed secret new /etc/resumed/farm.secret
before=$(reloads)
systemctl reload resumed.service
reloaded() { [ "$(reloads)" -gt "$before" ]; }
soon "a reload reads" reloaded
is "what was handed over at the start" "$id" secret_id
systemctl restart resumed.service
soon "a restart is handed the new one" is_another_secret "$id"
rm -r /run/systemd/system/resumed.service.d
systemctl daemon-reload
chown root:resumed /etc/resumed/farm.secret
chmod 640 /etc/resumed/farm.secret
systemctl restart resumed.service
soon "and without it the file is read again" ready_with "no broker: generation $generation"

step "an address that comes later than the daemon"
set_config '[metrics]' 'listen = "198.51.100.7:9464"'
systemctl restart resumed.service
soon "it runs all the same" ready_with "leader, *"
ip address add 198.51.100.7/32 dev lo
soon "and serves metrics once the address is there" metrics_at 198.51.100.7
ip address del 198.51.100.7/32 dev lo

step "what keeps it from starting, and passes"
set_config '[metrics]' 'listen = "127.0.0.1:9464"'
systemctl stop resumed.service
python3 -c 'import socket, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1", 9464)); s.listen(); time.sleep(600)' &
squatter=$!
port_taken() { (exec 3<>/dev/tcp/127.0.0.1/9464); }
soon "its port is taken" port_taken
systemctl start --no-block resumed.service
tried_often() { [ "$(the NRestarts)" -ge 7 ]; }
soon "it tries more often than systemd's usual limit" tried_often
kill "$squatter"
wait "$squatter" 2>/dev/null || true
soon "and runs when the port is free" ready_with "leader, *"
is "with the same key" "$generation" active_generation

step "what keeps it from starting, and does not pass"
set_config 'nonsense = true'
check "restarting fails" not systemctl restart resumed.service
is "with the exit code for it" 2 the ExecMainStatus
is "and it is not tried again" failed systemctl is-failed resumed.service
set_config '[broker]' 'uris = ["amqp://resumed@broker.invalid:5672/%2f"]' '[secret]' 'files = ["/etc/resumed/farm.secret"]'
systemctl restart resumed.service
soon "mended, it runs with the same key" ready_with "no broker: generation $generation"

step "a ring that takes longer than the time to start"
mkdir -p /run/systemd/system/resumed.service.d
printf '[Service]\nTimeoutStartSec=2\n' >/run/systemd/system/resumed.service.d/start.conf
systemctl daemon-reload
systemctl stop resumed.service
rm /run/resumed/ring
set_config '[node]' 'start_alone_after = "8s"' '[broker]' 'uris = ["amqp://resumed@broker.invalid:5672/%2f"]' '[secret]' 'files = ["/etc/resumed/farm.secret"]'
systemctl start --no-block resumed.service
waits() { [ "$(the ActiveState)" = activating ] && says "no broker: no ticket key yet"; }
soon "it waits for its farm, and says so" waits
pid=$(the MainPID)
soon "and then serves alone, with a key of its own" ready_with "no broker: generation *"
is "in one go" "$pid" the MainPID
generation=$(active_generation)
rm -r /run/systemd/system/resumed.service.d
systemctl daemon-reload

step "a daemon that is frozen"
mkdir -p /run/systemd/system/resumed.service.d
printf '[Service]\nWatchdogSec=2\n' >/run/systemd/system/resumed.service.d/watchdog.conf
systemctl daemon-reload
systemctl restart resumed.service
soon "it runs" ready_with "no broker: generation $generation"
pid=$(the MainPID)
kill -STOP "$pid"
soon "the watchdog replaces it" restarted
soon "and the next one has the ring" ready_with "no broker: generation $generation"
rm -r /run/systemd/system/resumed.service.d
systemctl daemon-reload

step "upgrade"
sum=$(sha256sum "$config")
pid=$(the MainPID)
dpkg --install "${second[@]}" >"$scratch/upgrade" 2>&1 || { cat "$scratch/upgrade"; exit 1; }
check "the new package is there" test "$(package_state resumed)" = "installed $(dpkg-deb --field "$folder"/resumed_*-2_*.deb Version)"
check "the daemon was restarted" restarted
soon "it runs with the same key" ready_with "no broker: generation $generation"
if has_proxy; then soon "the proxy is connected again" proxy_connected; fi
down=$((($(the InactiveExitTimestampMonotonic) - $(the InactiveEnterTimestampMonotonic)) / 1000))
check "it was down for $down ms: restarted, not stopped until the end of the upgrade" test "$down" -lt 5000
is "the changed configuration is kept" "$sum" sha256sum "$config"
is "with its mode" "640 root:resumed" file "$config"
check "and no newer one beside it" not test -e "$config.dpkg-dist"

step "an upgrade whose package has another configuration"
dpkg-deb --raw-extract "$folder"/resumed_*-2_*.deb "$scratch/package"
echo '# A release further on.' >>"$scratch/package$config"
sed -i 's/^\(Version: .*\)-2$/\1-3/' "$scratch/package/DEBIAN/control"
dpkg-deb --root-owner-group --build "$scratch/package" "$scratch/resumed-3.deb" >/dev/null
pid=$(the MainPID)
systemctl disable --quiet resumed.service
dpkg --force-confdef --force-confold --install "$scratch/resumed-3.deb" >"$scratch/upgrade" 2>&1 || { cat "$scratch/upgrade"; exit 1; }
is "the changed configuration is kept" "$sum" sha256sum "$config"
is "with its mode" "640 root:resumed" file "$config"
check "the new one is beside it" grep -F 'A release further on.' "$config.dpkg-dist"
is "what the administrator disabled stays disabled" disabled systemctl is-enabled resumed.service
systemctl enable --quiet resumed.service
systemctl restart resumed.service
soon "it runs with the same key" ready_with "no broker: generation $generation"

step "remove"
if has_proxy; then
  dpkg --remove resumed-trafficserver >"$scratch/remove" 2>&1 || { cat "$scratch/remove"; exit 1; }
  check "a plugin.config that still names the plugin is named" grep -F 'plugin.config still names resumed.so' "$scratch/remove"
  sed -i '/^resumed\.so /d' /etc/trafficserver/plugin.config
  is "Traffic Server's configuration is as it was" "$plugin_config" sha256sum /etc/trafficserver/plugin.config
fi
dpkg --remove resumed >"$scratch/remove" 2>&1 || { cat "$scratch/remove"; exit 1; }
check "the service has ended" not active
check "the program is gone" not test -e /usr/bin/resumed
check "the keys are gone" not test -e /run/resumed
is "the configuration stays" "$sum" sha256sum "$config"
is "so does the farm secret" "640 root:resumed" file /etc/resumed/farm.secret
check "and the user" id resumed

step "install again"
dpkg --force-confdef --force-confold --install "$folder"/resumed_*-2_*.deb >"$scratch/install" 2>&1 || { cat "$scratch/install"; exit 1; }
soon "it runs with its configuration, and a new key" ready_with "no broker: generation *"
check "which is another one" test "$(active_generation)" != "$generation"
is "it starts at boot" enabled systemctl is-enabled resumed.service

step "purge"
dpkg --purge resumed resumed-trafficserver >"$scratch/purge" 2>&1 || { cat "$scratch/purge"; exit 1; }
check "the service has ended" not active
check "the configuration is gone" not test -e "$config"
check "the keys are gone" not test -e /run/resumed
is "the administrator's secret stays" "640 root:resumed" file /etc/resumed/farm.secret
check "and is named" grep -F '/etc/resumed keeps what this package did not make: farm.secret' "$scratch/purge"
check "the user stays, locked" grep -E '^resumed:[!*]' /etc/shadow
rm -r /etc/resumed
inventory >"$scratch/after"
# What adduser made and its backups of the files before.
grep -vxE '/etc/(passwd|shadow|group|gshadow|subuid|subgid)-?' "$scratch/before" >"$scratch/before.files"
grep -vxE '/etc/(passwd|shadow|group|gshadow|subuid|subgid)-?' "$scratch/after" >"$scratch/after.files"
check "nothing else is left" diff "$scratch/before.files" "$scratch/after.files"

step "a purge of what nobody touched"
dpkg --install "$folder"/resumed_*-1_*.deb >"$scratch/install" 2>&1 || { cat "$scratch/install"; exit 1; }
soon "it runs" ready_with "leader, *"
dpkg --purge resumed >"$scratch/purge" 2>&1 || { cat "$scratch/purge"; exit 1; }
check "leaves no folder" not test -e /etc/resumed
check "and no word" not grep -i 'not empty\|keeps' "$scratch/purge"

if [ "${#previous[@]}" -gt 0 ]; then
  step "an upgrade from the release before, whose manual put operators into the group resumed"
  delgroup --quiet resumed-control
  dpkg --install "${previous[@]}" >"$scratch/install" 2>&1 || { cat "$scratch/install"; exit 1; }
  adduser --quiet alice-b resumed
  resumed secret new /etc/resumed/farm.secret
  chown root:resumed /etc/resumed/farm.secret
  chmod 640 /etc/resumed/farm.secret
  set_config '[broker]' 'uris = ["amqp://resumed@broker.invalid:5672/%2f"]' '[secret]' 'files = ["/etc/resumed/farm.secret"]'
  systemctl restart resumed.service
  soon "it runs" ready_with "no broker: generation *"
  generation=$(active_generation)
  check "an operator reads the farm secret there" runuser -u alice-b -- cat /etc/resumed/farm.secret

  dpkg --force-confdef --force-confold --install "${first[@]}" >"$scratch/upgrade" 2>&1 || { cat "$scratch/upgrade"; exit 1; }
  soon "it runs with the same key" ready_with "no broker: generation $generation"
  is "the control socket" "660 resumed:resumed-control" file /run/resumed/control.sock
  check "the package says that it moved the operator" grep -F 'moved alice-b from the group "resumed"' "$scratch/upgrade"
  check "and names no reader any more" not grep -F 'besides the daemon' "$scratch/upgrade"
  check "she is in the one group" in_group alice-b resumed-control
  check "and not in the other" not in_group alice-b resumed
  check "she asks for the status" runuser -u alice-b -- resumed status
  check "and does not read the secret" not runuser -u alice-b -- cat /etc/resumed/farm.secret

  step "back to the release before"
  kept=$(sha256sum "$config")
  pid=$(the MainPID)
  dpkg --force-confdef --force-confold --install "${previous[@]}" >"$scratch/downgrade" 2>&1 || { cat "$scratch/downgrade"; exit 1; }
  is_installed "${previous[@]}"
  check "the daemon was restarted" restarted
  soon "it runs with the same key" ready_with "no broker: generation $generation"
  soon "which it took from the ring of the newer one" logged_by_this_process "took up the ring of the last run"
  is "the configuration is kept" "$kept" sha256sum "$config"
  is "with its mode" "640 root:resumed" file "$config"
  is "and the farm secret's" "640 root:resumed" file /etc/resumed/farm.secret
  is "the control socket is given to the group that it had there" "660 resumed:resumed" file /run/resumed/control.sock
  check "root asks for the status" resumed status
  is "it starts at boot" enabled systemctl is-enabled resumed.service

  step "and up again"
  pid=$(the MainPID)
  dpkg --force-confdef --force-confold --install "${first[@]}" >"$scratch/upgrade" 2>&1 || { cat "$scratch/upgrade"; exit 1; }
  is_installed "${first[@]}"
  check "the daemon was restarted" restarted
  soon "it runs with the same key" ready_with "no broker: generation $generation"
  soon "which it took from the ring of the older one" logged_by_this_process "took up the ring of the last run"
  is "the configuration is kept" "$kept" sha256sum "$config"
  is "the control socket" "660 resumed:resumed-control" file /run/resumed/control.sock
  check "the operator asks for the status" runuser -u alice-b -- resumed status
  check "and does not read the secret" not runuser -u alice-b -- cat /etc/resumed/farm.secret

  step "an upgrade whose configuration has the old group"
  printf '[control]\ngroup = "resumed"\n' >>"$config"
  adduser --quiet alice-b resumed
  gpasswd --delete alice-b resumed-control >/dev/null
  dpkg --force-confold --install "$folder"/resumed_*-2_*.deb >"$scratch/upgrade" 2>&1 || { cat "$scratch/upgrade"; exit 1; }
  soon "it runs with the same key" ready_with "no broker: generation $generation"
  is "the control socket is given to that" "660 resumed:resumed" file /run/resumed/control.sock
  check "the operator goes on working" runuser -u alice-b -- resumed status
  check "the package warns" grep -F 'control.group in /etc/resumed/resumed.toml is "resumed"' "$scratch/upgrade"
  check "so does the check" sh -c 'runuser -u resumed -- resumed check | grep "which is control.group"'
  soon "and the daemon" logged "which is control.group"
  dpkg --purge resumed resumed-trafficserver >"$scratch/purge" 2>&1 || { cat "$scratch/purge"; exit 1; }
fi
printf '\nall checks passed\n'
