#!/usr/bin/env bash
# Packs one static program as an image: archive.sh TARGET NAME:TAG PROGRAM ENTRYPOINT
# The image holds nothing else, and runs as user and group 65532.
set -euo pipefail
target=$1 reference=$2 program=$3 entrypoint=$4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root/$(dirname "$entrypoint")" "$work/root/tmp"
cp "$program" "$work/root/$entrypoint"
chmod -R u=rwX,go=rX "$work/root"
chmod 755 "$work/root/$entrypoint"
chmod 1777 "$work/root/tmp"
tar --directory "$work/root" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --create --file "$work/layer.tar" .
layer=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
cat >"$work/config.json" <<END
{"architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:00Z",
 "config": {"User": "65532:65532", "Entrypoint": ["/$entrypoint"], "WorkingDir": "/"},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$layer"]}}
END
echo "[{\"Config\": \"config.json\", \"RepoTags\": [\"$reference\"], \"Layers\": [\"layer.tar\"]}]" >"$work/manifest.json"
tar --directory "$work" --mtime=@0 --owner=0 --group=0 --numeric-owner --create --file "$target.partial" \
  manifest.json config.json layer.tar
mv "$target.partial" "$target"
