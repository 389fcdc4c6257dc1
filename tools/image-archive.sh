#!/usr/bin/env bash
# Packs folders as the layers of a container image: image-archive.sh ARCHIVE REFERENCE ENTRYPOINT FOLDER...
#
# The archive is an OCI layout with Docker's manifest.json beside it, so that containerd, skopeo, podman and docker read
# it. The same files give the same bytes: names are sorted, times and owners fixed. The image runs as user 65532.
set -euo pipefail
[ $# -ge 4 ] || { echo "usage: $0 ARCHIVE REFERENCE ENTRYPOINT FOLDER..." >&2; exit 2; }
archive=$1 reference=$2 entrypoint=$3
shift 3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/blobs/sha256"

# Archives the contents of a folder: pack FOLDER TARGET NAME...
pack() {
  local folder=$1 target=$2
  shift 2
  tar --directory "$folder" --create --file "$target" --format=gnu --sort=name --mtime=@0 \
    --owner=0 --group=0 --numeric-owner "$@"
}
# Moves a file among the blobs and prints its digest.
blob() {
  local digest
  digest=$(sha256sum "$1" | cut -d' ' -f1)
  mv "$1" "$work/blobs/sha256/$digest"
  echo "$digest"
}
size() { stat -c %s "$work/blobs/sha256/$1"; }
joined() { local IFS=,; echo "$*"; }

layers=() descriptors=() paths=()
for folder in "$@"; do
  pack "$folder" "$work/layer" .
  digest=$(blob "$work/layer")
  layers+=("\"sha256:$digest\"")
  paths+=("\"blobs/sha256/$digest\"")
  descriptors+=("{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"sha256:$digest\",\"size\":$(size "$digest")}")
done

name=${reference##*/}
labels="\"org.opencontainers.image.title\":\"${name%%:*}\",\"org.opencontainers.image.version\":\"${name##*:}\""
labels+=",\"org.opencontainers.image.licenses\":\"MIT OR Apache-2.0\""
[ -z "${IMAGE_SOURCE:-}" ] || labels+=",\"org.opencontainers.image.source\":\"$IMAGE_SOURCE\""
[ -z "${IMAGE_REVISION:-}" ] || labels+=",\"org.opencontainers.image.revision\":\"$IMAGE_REVISION\""
created=$(date --utc --date="@${SOURCE_DATE_EPOCH:-0}" +%Y-%m-%dT%H:%M:%SZ)
cat >"$work/config" <<END
{"architecture":"amd64","os":"linux","created":"$created","config":{"User":"65532:65532","WorkingDir":"/","Env":["PATH=/usr/local/bin:/usr/bin:/bin"],"Entrypoint":["$entrypoint"],"Labels":{$labels}},"rootfs":{"type":"layers","diff_ids":[$(joined "${layers[@]}")]}}
END
config=$(blob "$work/config")
cat >"$work/manifest" <<END
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:$config","size":$(size "$config")},"layers":[$(joined "${descriptors[@]}")]}
END
manifest=$(blob "$work/manifest")
# containerd takes the name from the first annotation, skopeo and podman from the second.
cat >"$work/index.json" <<END
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$manifest","size":$(size "$manifest"),"platform":{"architecture":"amd64","os":"linux"},"annotations":{"io.containerd.image.name":"$reference","org.opencontainers.image.ref.name":"${name##*:}"}}]}
END
echo '{"imageLayoutVersion":"1.0.0"}' >"$work/oci-layout"
echo "[{\"Config\":\"blobs/sha256/$config\",\"RepoTags\":[\"$reference\"],\"Layers\":[$(joined "${paths[@]}")]}]" >"$work/manifest.json"

mkdir -p "$(dirname "$archive")"
pack "$work" "$work/archive" oci-layout index.json manifest.json blobs
mv "$work/archive" "$archive"
