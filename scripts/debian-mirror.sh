#!/usr/bin/env bash
# Prints the mirror from which this machine's own apt sources get the main part of a Debian release.
# usage: scripts/debian-mirror.sh [CODENAME]     this machine's own release, if no other is named
#
# Prints nothing, and fails, where the sources name no mirror of it. Sources of others for that release do not count.
set -euo pipefail

# shellcheck source=/dev/null
codename=${1:-$(. /etc/os-release && printf '%s' "${VERSION_CODENAME-}")}
# shellcheck disable=SC2016  # what apt-get itself replaces
mirror=$(apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
  awk -v name="$codename" '$1 == "Debian" && $2 == name && $3 == "main" && $4 ~ "^https?://" && !found { print $4; found = 1 }')
if [ -z "$mirror" ]; then
  echo "$0: the apt sources of this machine name no http or https mirror of $codename, main: run 'apt-get update'" >&2
  exit 1
fi
printf '%s\n' "$mirror"
