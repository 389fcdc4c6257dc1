# For scripts that build a prover; sourced in the repository's root. prover_target NAME MANIFEST CRATE sets
#   version  of the crate that the manifest pins
#   level    of the processor to build for: x86-64-v3 (AVX2) where this machine has it; PROVER_CPU=x86-64 builds for
#            every x86-64 machine
#   CARGO_TARGET_DIR  the folder of that version and level in the cache, locked until the script ends
# and for_level sets the compilers' flags.
prover_target() {
  local name=$1 manifest=$2 crate=$3 feature
  version=$(sed -n "s/^$crate = { version = \"=\([^\"]*\)\".*/\1/p" "$manifest")
  [ -n "$version" ] || { echo "$manifest pins no version of $crate" >&2; exit 1; }
  level=${PROVER_CPU:-}
  if [ -z "$level" ]; then
    level=x86-64-v3
    for feature in avx2 bmi1 bmi2 f16c fma abm movbe; do
      grep -qm1 -w "$feature" /proc/cpuinfo || level=x86-64
    done
  fi
  case $level in
    x86-64-v3 | x86-64) ;;
    *) echo "PROVER_CPU is $level: set it to x86-64-v3 or x86-64" >&2; exit 2 ;;
  esac
  export CARGO_TARGET_DIR=${PROVER_OPERATOR_CACHE:-$HOME/.cache/prover-operator}/$name-$version-$level
  mkdir -p "$CARGO_TARGET_DIR" target/bin
  # Two checkouts may share the cache: the copy must be of what this one has built.
  exec 9>"$CARGO_TARGET_DIR/.prover-operator.lock"
  flock 9
}

for_level() {
  unset CXXFLAGS CFLAGS RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
  [ "$level" = x86-64 ] ||
    export CXXFLAGS=-march=$level CFLAGS=-march=$level RUSTFLAGS="-C target-cpu=$level"
}
