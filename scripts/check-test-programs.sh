#!/usr/bin/env bash
# Fails unless each file in the folders of tests/ is a test program in tests/Cargo.toml, by the name of the file, and has a row
# in docs/testing.md; and the reverse. Cargo passes over a file that no [[test]] names, and `make test` begins with the files.
# usage: scripts/check-test-programs.sh
set -euo pipefail
cd "$(dirname "$0")/.."

# same WHAT EXPECTED FOUND: fails, and says what differs, unless the two lists of lines are the same.
status=0
same() {
  local difference
  difference=$(diff <(sort <<<"$2") <(sort <<<"$3") | sed -n 's/^< /missing: /p; s/^> /in excess: /p') || true
  [ -z "$difference" ] || { printf 'check-test-programs: %s\n%s\n' "$1" "$difference" >&2; status=1; }
}

# Lines are "NAME FOLDER/NAME.rs". decoders/, demo/ and support/ have no tests.
files=$(cd tests && printf '%s\n' */*.rs | grep --invert-match --extended-regexp '^(decoders|demo|support)/' |
  sed -E 's|^.*/(.*)\.rs$|\1 &|')
programs=$(awk '
  /^\[/ { test = $0 == "[[test]]" }
  test && $1 == "name" { name = $3 }
  test && $1 == "path" { print name, $3 }' tests/Cargo.toml | tr --delete '"')
# shellcheck disable=SC2016  # backticks of Markdown
rows=$(sed -n '/^|/ s/^| \([^|]*\) |.*/\1/p' docs/testing.md | grep --only-matching --extended-regexp '`[a-z_]+/[a-z_]+\.rs`' |
  tr --delete '`' | sed -E 's|^.*/(.*)\.rs$|\1 &|')

same 'the [[test]] entries of tests/Cargo.toml are not the files in the folders of tests/' "$files" "$programs"
same 'the first column of the tables in docs/testing.md is not the files in the folders of tests/' "$files" "$rows"
exit $status
