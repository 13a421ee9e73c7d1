#!/usr/bin/env bash
# Runs a command once for each RabbitMQ, with RABBITMQ in its environment set to that: a test run, that is.
# usage (as root): scripts/test-brokers.sh "RELEASE..." ROOTS COMMAND...
#
# RELEASE is `own` for this machine's, or one that scripts/broker-root.sh makes in the folder ROOTS; with MAKE_ROOTS=no in the
# environment, one that it has made there before. Says which broker and which
# Erlang each run is on, and in the end what became of each. One whose root cannot be made is NOT RUN, with the reason; that
# is no failure, and it does not count as passed. Nor does what the command itself said was NOT RUN. Fails if the command fails
# on any.
set -uo pipefail

[ $# -ge 3 ] || { echo "usage: $0 \"RELEASE...\" ROOTS COMMAND..." >&2; exit 2; }
read -ra releases <<<"$1"
roots=$2
shift 2
here=$(dirname "$0")
why=$(mktemp) said=$(mktemp)
trap 'rm -f "$why" "$said"' EXIT

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
    reason=$(grep -E '^(E|W|Err|dpkg): ?|rror' "$roots/$release.log" 2>/dev/null | tail -n 1)
    summary+=("$release: NOT RUN: $roots/$release could not be made: ${reason:-no reason is in its log}")
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
  RABBITMQ=${root:+$(realpath "$root")} "$@" 2>&1 | tee "$said" || { outcome=FAILED failed=1; }
  not_run=$(sed -n 's/.*==> \(.*\): NOT RUN: .*/\1/p' "$said" | sort -u | paste -s -d ';' | sed 's/;/; /g')
  summary+=("$release: $broker: $outcome, $((SECONDS - began)) s${not_run:+; NOT RUN: $not_run}")
done
printf '==> %s\n' "${summary[@]}"
[ "$failed" -eq 0 ]
