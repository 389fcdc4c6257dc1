#!/usr/bin/env bash
# Compiles the sample guest programs for RISC Zero: build.sh [FOLDER], by default target/programs.
# The result depends on the sources and the compiler alone: no path, date or host enters it.
set -euo pipefail

sources=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
output=${1:-target/programs}

for tool in clang ld.lld; do
  if ! command -v "$tool" > /dev/null; then
    echo "build.sh: $tool is missing. On Debian and Ubuntu: apt-get install clang lld" >&2
    exit 1
  fi
done

mkdir -p "$output"
output=$(cd "$output" && pwd)
cd "$sources"
for program in fibonacci sha256 merkle composes panics spins draws keccak; do
  clang --target=riscv32-unknown-elf -march=rv32im -mabi=ilp32 -std=c11 -O2 -Wall -Wextra -Werror \
    -Wno-pointer-to-int-cast -ffreestanding -fno-builtin -nostdlib -fuse-ld=lld -Wl,--no-rosegment -Wl,--build-id=none -Wl,-s \
    -Wl,-T,runtime/guest.ld -o "$output/$program.elf.new" runtime/runtime.c "$program/main.c"
  mv "$output/$program.elf.new" "$output/$program.elf"
  echo "$output/$program.elf"
done
