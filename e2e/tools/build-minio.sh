#!/usr/bin/env bash
# Builds MinIO into the cache and prints the path of the binary. What is there already is left alone.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/go-cache.sh"
version=$(required_version "$here/minio/go.mod" github.com/minio/minio)
target=$cache/minio-$version/minio
hold "$(dirname "$target")"
build_go "$target" "$here/minio" github.com/minio/minio "MinIO $version (about 2 minutes on 2 free cores)"
echo "$target"
