#!/usr/bin/env bash
# Runs test programs some at a time, and prints what each printed when it is over.
# usage: scripts/side-by-side.sh COUNT LOGS NAME...     with RUN in the environment: a command that ends where a NAME goes
#
# Most of these tests wait for servers, so two cores carry several. They begin in the order in which they are named: the longest
# first. What failed is printed last, and fails the whole; so the last line is always the closing line of a test runner.
set -euo pipefail

if [ $# -lt 3 ] || [ -z "${RUN-}" ]; then
  echo "usage: RUN=COMMAND $0 COUNT LOGS NAME..." >&2
  exit 2
fi
count=$1 logs=$2
shift 2
rm -rf "$logs"
mkdir -p "$logs"

# print NAME SECONDS: what it printed, its closing line last.
print() {
  awk -v took="==> $1 took $2 s, $(cat "$logs/$1.cpu") of a core" '
    { line[NR] = $0; if (/^test result: /) last = NR }
    END {
      for (i = 1; i <= NR; i++) if (i != last) print line[i]
      print took
      if (last) print line[last]
    }' "$logs/$1.log"
}

# one NAME: in a process of its own.
one() {
  local name=$1 began=$SECONDS status=0
  # What it and all servers that it started took of the processors, as far as it saw them end.
  TIMEFORMAT='%U %S'
  # shellcheck disable=SC2086  # RUN is a command with its arguments
  { time $RUN$name >"$logs/$name.log" 2>&1; } 2>"$logs/$name.times" || status=$?
  awk 'NF == 2 { printf "%.0f s", $1 + $2 }' "$logs/$name.times" >"$logs/$name.cpu"
  exec 9>"$logs/.turn"
  flock 9
  if [ "$status" -eq 0 ]; then
    print "$name" "$((SECONDS - began))"
  else
    printf '==> %s FAILED after %d s: see the end\n' "$name" "$((SECONDS - began))"
    echo "$name $((SECONDS - began))" >>"$logs/.failed"
  fi
}

running=0
for name in "$@"; do
  if [ "$running" -ge "$count" ]; then
    wait -n
    running=$((running - 1))
  fi
  one "$name" &
  running=$((running + 1))
done
wait
[ ! -e "$logs/.failed" ] || {
  while read -r name seconds; do
    printf '==> %s FAILED:\n' "$name"
    print "$name" "$seconds"
  done <"$logs/.failed"
  exit 1
}
