#!/usr/bin/env bash
# Holds the rooms of src/ to the arrows of scripts/rooms.txt: no room uses another that is not named there, the pure ones touch
# no socket, file, task, clock or recorder, and docs/architecture.md shows the same table. Tests may use what they like. And holds files to
# 700 lines.
#
# Usage: scripts/check-rooms.sh [--actual]   With --actual it prints the arrows that there are, and checks nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

TABLE=scripts/rooms.txt
# What a pure room keeps away from, as paths in its sources.
IMPURE='tokio(::|_util::)|metrics::|tracing::|std::(fs|net|os|process|thread|env)\b|Instant::now|SystemTime|getrandom|openssl::rand|nix::'

# The sources of a room without its tests and comments.
sources() {
  local room=$1 file tests
  # Modules that are there for tests alone, by name.
  tests=$({ grep -rhA1 --include='*.rs' '^#\[cfg(test)\]' "src/$room" "src/$room.rs" 2>/dev/null || true; } |
    sed -nE 's/^(pub(\([a-z]*\))? )?mod ([a-z_]+);/\3/p' | sort -u | paste -sd'|')
  while IFS= read -r file; do
    sed -E '/^#\[cfg\(test\)\]/,/^}|^(pub(\([a-z]*\))? )?mod [a-z_]+;|^use /d; s,^[[:space:]]*//.*,,' "$file" | sed "s,^,$file: ,"
  done < <(find "src/$room" "src/$room.rs" -name '*.rs' 2>/dev/null | { grep -vE "/(${tests:-none})(\.rs|/)" || true; } | sort)
}

rooms() {
  find src -mindepth 1 -maxdepth 1 \( -type d -o -name '*.rs' \) -printf '%f\n' | sed 's/\.rs$//' | grep -vxE 'lib|main|temporary' | sort -u
}

arrows() {
  sources "$1" | { grep -oE 'crate::(\{[^}]*\}|[a-z_]+)' || true; } | sed -E 's/crate:://; s/[{},]/ /g' | tr -s ' ' '\n' |
    { grep -E '^[a-z_]+$' || true; } | { grep -vxF "$1" || true; } | sort -u | paste -sd' '
}

if [ "${1:-}" = --actual ]; then
  for room in $(rooms); do printf '%s: %s\n' "$room" "$(arrows "$room")"; done
  exit
fi

failed=0
say() {
  echo "check-rooms: $*" >&2
  failed=1
}

while IFS=: read -r name allowed; do
  case $name in '' | '#'*) continue ;; esac
  room=${name%% *}
  [ -e "src/$room" ] || [ -e "src/$room.rs" ] || say "$TABLE names $room, which is no room of src/"
  for used in $(arrows "$room"); do
    case " $allowed " in
    *" $used "*) ;;
    *) say "src/$room uses crate::$used, which $TABLE does not allow: move what is shared, or show there why it must" ;;
    esac
  done
  if [ "$name" != "$room" ] && sources "$room" | grep -nE "$IMPURE" >&2; then
    say "src/$room is pure, and these lines are not"
  fi
done <"$TABLE"

for room in $(rooms); do
  grep -qE "^$room( pure)?:" "$TABLE" || say "src/$room has no line in $TABLE"
done
# A file is one concern. What its tests take does not count.
while IFS= read -r file; do
  lines=$(sed '/^#\[cfg(test)\]$/,$d' "$file" | wc -l)
  [ "$lines" -le 700 ] || say "$file has $lines lines before its tests; 700 are accepted: part what it holds"
done < <(find src ats-plugin/src session-offer/src -name '*.rs' ! -name tests.rs)
# No two rooms may use each other, by whatever way round.
if ! sed -E '/^(#|$)/d; s/ pure:/:/' "$TABLE" | awk -F': *' '{ n = split($2, to, " "); print $1, $1; for (i = 1; i <= n; i++) print to[i], $1 }' |
  tsort >/dev/null; then
  say "the arrows of $TABLE go round in a circle"
fi
if ! diff <(sed '/^#/d' "$TABLE") <(sed -n '/<!-- rooms -->/,/<!-- end -->/p' docs/architecture.md | sed '/^<!--/d; /^```/d; /^$/d'); then
  say "docs/architecture.md does not show $TABLE between its marks"
fi
exit $failed
