#!/usr/bin/env bash
# Imports image archives into the node: load-images.sh [ARCHIVE...]     default: target/images/*.tar
# An archive that was imported before and has not changed is left alone.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
[ "$mode" = own ] || exec "$here/existing.sh"
[ $# -gt 0 ] || set -- "$repository"/target/images/*.tar
[ -f "$1" ] || fail "there is no image archive $1: run 'make images' first"
imported=$folder/run/imported-images
touch "$imported"
for archive in "$@"; do
  # What a file was, without reading gigabytes: path, size and time of change.
  mark=$(stat --format '%n %s %.Y' "$(realpath "$archive")")
  grep -qxF "$mark" "$imported" && continue
  say "importing $(basename "$archive")"
  in_node ctr --namespace k8s.io images import - <"$archive" >/dev/null
  { grep -vF "$(realpath "$archive") " "$imported" || true; echo "$mark"; } >"$imported.new"
  mv "$imported.new" "$imported"
done
