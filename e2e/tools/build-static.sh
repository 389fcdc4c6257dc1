#!/usr/bin/env bash
# Builds programs of the workspace that need no library of the image they run in: build-static.sh PACKAGE...
# Prints the folder that holds them. glibc is linked in, since no other C library is installed with the toolchain.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=x86_64-unknown-linux-gnu
packages=()
for package in "$@"; do packages+=(--package "$package"); done
# Under a target of its own, so that the flag rebuilds nothing of the ordinary builds.
cargo build --quiet --release --locked --target "$target" \
  --config "target.$target.rustflags=[\"-C\", \"target-feature=+crt-static\"]" "${packages[@]}" >&2
echo "${CARGO_TARGET_DIR:-$PWD/target}/$target/release"
