#!/usr/bin/env bash
# Builds CoreDNS into the cache and prints the path of the binary. What is there already is left alone.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/go-cache.sh"
version=$(required_version "$here/coredns/go.mod" github.com/coredns/coredns)
target=$cache/coredns-$version/coredns
hold "$(dirname "$target")"
build_go "$target" "$here/coredns" . "CoreDNS $version (about 1 minute on 2 free cores)"
echo "$target"
