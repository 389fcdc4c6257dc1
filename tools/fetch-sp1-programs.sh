#!/usr/bin/env bash
# Puts the sample programs of SP1 into target/programs/sp1: their ELF files are inside the published crate sp1-gpu-prover;
# `permutes`, whose calls of a precompile fill shards of their own, is compiled here.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^sp1-prover = { version = "=\([^"]*\)".*/\1/p' worker/backends/sp1/Cargo.toml)
cache=${PROVER_OPERATOR_CACHE:-$HOME/.cache/prover-operator}/sp1-programs-$version
if [ ! -f "$cache/.complete" ]; then
  rm -rf "$cache"
  mkdir -p "$cache/crate/src"
  printf '[package]\nname = "programs"\nversion = "0.0.0"\nedition = "2021"\n[workspace]\n[dependencies]\nsp1-gpu-prover = "=%s"\n' \
    "$version" >"$cache/crate/Cargo.toml"
  : >"$cache/crate/src/lib.rs"
  cargo fetch --quiet --manifest-path "$cache/crate/Cargo.toml"
  manifest=$(cargo metadata --format-version 1 --manifest-path "$cache/crate/Cargo.toml" | tr ',' '\n' |
    sed -n 's/.*"manifest_path":"\([^"]*\/sp1-gpu-prover-[0-9][^"/]*\)\/Cargo.toml".*/\1/p')
  for program in "$manifest"/programs/*/; do
    cp "$program/riscv64im-succinct-zkvm-elf" "$cache/$(basename "$program").elf"
  done
  rm -rf "$cache/crate"
  touch "$cache/.complete"
fi
mkdir -p target/programs/sp1
install -m 0644 "$cache"/*.elf target/programs/sp1/
clang --target=riscv64-unknown-elf -march=rv64im -mabi=lp64 -mcmodel=medany -std=c11 -O2 -Wall -Wextra -Werror \
  -ffreestanding -fno-builtin -nostdlib -fuse-ld=lld -Wl,--build-id=none -Wl,-s -Wl,-e,start \
  -Wl,--image-base=0x78000000 -Wl,-Ttext=0x78010000 \
  -o target/programs/sp1/permutes.elf config/samples/programs/sp1/permutes/main.c
