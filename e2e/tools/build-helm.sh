#!/usr/bin/env bash
# Builds Helm and helm-unittest into the cache and prints the folder that holds them. What is there already is left alone.
#
# Usage: build-helm.sh [PROGRAM...]     helm, helm-unittest; both where none is named
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/go-cache.sh"
declare -A module_of=([helm]=helm.sh/helm/v4 [helm-unittest]=github.com/helm-unittest/helm-unittest)

version_of() { required_version "$here/$1/go.mod" "${module_of[$1]}"; }
helm=$(version_of helm)
unittest=$(version_of helm-unittest)
folder=$cache/helm-$helm-unittest-$unittest
[ $# -gt 0 ] || set -- helm helm-unittest
for program in "$@"; do
  [ -n "${module_of[$program]:-}" ] || { echo "there is no program $program: choose helm, helm-unittest" >&2; exit 2; }
done

hold "$folder"
for program in "$@"; do
  module=${module_of[$program]} flags=
  [ "$program" != helm ] ||
    flags="-X $module/internal/version.version=$helm -X $module/internal/version.gitTreeState=clean"
  build_go "$folder/$program" "$here/$program" "$module/cmd/$program" \
    "$program $(version_of "$program") (about 2 minutes on 2 cores)" "$flags"
done
echo "$folder"
