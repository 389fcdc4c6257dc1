#!/usr/bin/env bash
# Checks what tools/image-archive.sh packs: the same files give the same bytes, every blob is what its name says, and
# both indexes name blobs that are there.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "image-archive.sh: $*" >&2; exit 1; }

for attempt in 1 2; do
  mkdir -p "$work/$attempt"/{base/etc,base/tmp,programs/usr/local/bin}
  chmod 1777 "$work/$attempt/base/tmp"
  # In another order, at other times.
  for name in $([ "$attempt" = 1 ] && echo passwd group || echo group passwd); do
    echo "$name" >"$work/$attempt/base/etc/$name"
  done
  touch --date="@$attempt" "$work/$attempt/base/etc/passwd"
  echo program >"$work/$attempt/programs/usr/local/bin/sample"
  chmod 0755 "$work/$attempt/programs/usr/local/bin/sample"
  tools/image-archive.sh "$work/$attempt.tar" localhost:5000/team/sample:1.2 /usr/local/bin/sample \
    "$work/$attempt/base" "$work/$attempt/programs"
done
cmp -s "$work/1.tar" "$work/2.tar" || fail "the same files gave other bytes"

mkdir "$work/image"
tar --directory "$work/image" --extract --file "$work/1.tar"
cd "$work/image"
for blob in blobs/sha256/*; do
  [ "$(sha256sum "$blob" | cut -d' ' -f1)" = "$(basename "$blob")" ] || fail "$blob is something else"
done
for digest in $(cat index.json manifest.json blobs/sha256/* | grep --text -oE '(sha256:|blobs/sha256/)[0-9a-f]{64}' | grep -oE '[0-9a-f]{64}'); do
  [ -f "blobs/sha256/$digest" ] || fail "blob $digest is named but missing"
done
grep -q '"localhost:5000/team/sample:1.2"' manifest.json || fail "docker would not find the name"
grep -q '"io.containerd.image.name":"localhost:5000/team/sample:1.2"' index.json || fail "containerd would not find the name"
grep -qs '"User":"65532:65532"' blobs/sha256/* || fail "the image does not run as user 65532"
grep -qs '"org.opencontainers.image.title":"sample","org.opencontainers.image.version":"1.2"' blobs/sha256/* ||
  fail "the labels are wrong"
layers=0
for blob in blobs/sha256/*; do
  tar --list --verbose --numeric-owner --file "$blob" >"$work/list" 2>/dev/null || continue
  layers=$((layers + 1))
  if grep -v ' 0/0 ' "$work/list"; then fail "a file has an owner"; fi
done
[ "$layers" = 2 ] || fail "$layers layers instead of 2"
echo "image-archive.sh: good"
