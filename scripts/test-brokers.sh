#!/usr/bin/env bash
# Runs a command once for each RabbitMQ, with RABBITMQ in its environment set to that: a test run, that is.
# usage (as root): scripts/test-brokers.sh "RELEASE..." ROOTS COMMAND...
#
# RELEASE is `own` for this machine's, or one that scripts/broker-root.sh makes in the folder ROOTS; with MAKE_ROOTS=no in the
# environment, one that it has made there before. Says which broker and which
# Erlang each run is on, and in the end what became of each. One whose root cannot be made is NOT RUN, with the reason; that
# is no failure, and it does not count as passed. Fails if the command fails on any.
set -uo pipefail

[ $# -ge 3 ] || { echo "usage: $0 \"RELEASE...\" ROOTS COMMAND..." >&2; exit 2; }
read -ra releases <<<"$1"
roots=$2
shift 2
here=$(dirname "$0")
why=$(mktemp)
trap 'rm -f "$why"' EXIT

own() {
  local erlang
  erlang=$(dpkg-query --show --showformat='${source:Upstream-Version}' erlang-base 2>/dev/null) &&
    dpkg-query --show --showformat="RabbitMQ \${source:Upstream-Version} on Erlang ${erlang%%+*}" rabbitmq-server 2>/dev/null ||
    printf 'the RabbitMQ of this machine'
}

summary=() failed=0
for release in "${releases[@]}"; do
  if [ "$release" = own ]; then
    broker=$(own) root=
  elif [ "${MAKE_ROOTS-}" = no ] && [ ! -e "$roots/$release.made-for" ]; then
    summary+=("$release: NOT RUN: $roots/$release could not be made")
    printf '==> %s\n' "${summary[-1]}"
    continue
  elif broker=$("$here/broker-root.sh" "$release" "$roots" 2> >(tee "$why" >&2)); then
    root=$roots/$release
  else
    summary+=("$release: NOT RUN: $(tail -n 1 "$why" | sed 's/^broker-root: //')")
    printf '==> %s\n' "${summary[-1]}"
    continue
  fi
  broker+=${RABBITMQ_STORE:+ with $RABBITMQ_STORE}
  printf '==> tests on %s (%s)\n' "$broker" "$release"
  began=$SECONDS outcome=passed
  RABBITMQ=${root:+$(realpath "$root")} "$@" || { outcome=FAILED failed=1; }
  summary+=("$release: $broker: $outcome, $((SECONDS - began)) s")
done
printf '==> %s\n' "${summary[@]}"
[ "$failed" -eq 0 ]
