#!/usr/bin/env bash
# Makes the images that only test clusters need, and imports them and those of target/images into the node.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
mkdir -p "$folder/images"

# pack NAME PROGRAM ENTRYPOINT: an image of one static program and nothing else, made again only when it is newer.
pack() {
  local archive=$folder/images/$1.tar work
  [ ! "$archive" -nt "$2" ] || return 0
  work=$(mktemp -d)
  install -D -m 0755 "$2" "$work$3"
  mkdir -m 1777 "$work/tmp"
  "$repository/tools/image-archive.sh" "$archive" "$registry/$1:$version" "$3" "$work"
  rm -rf "$work"
}

if [ ! "$folder/images/pause" -nt "$here/images/pause.c" ]; then
  gcc -static -O2 -Wall -Werror -o "$folder/images/pause" "$here/images/pause.c"
fi
pack pause "$folder/images/pause" /pause
pack minio "$("$repository/e2e/tools/build-minio.sh")" /usr/local/bin/minio
pack coredns "$("$repository/e2e/tools/build-coredns.sh")" /usr/local/bin/coredns
# In a folder of its own: cluster-up must not wait for whoever builds in this checkout.
programs=$(CARGO_TARGET_DIR=$cache/static "$repository/e2e/tools/build-static.sh" simulated-device-plugin)
pack simulated-device-plugin "$programs/simulated-device-plugin" /usr/local/bin/simulated-device-plugin
archives=("$folder"/images/*.tar)
for archive in "$repository"/target/images/*.tar; do
  [ -f "$archive" ] && archives+=("$archive")
done
"$here/load-images.sh" "${archives[@]}"
