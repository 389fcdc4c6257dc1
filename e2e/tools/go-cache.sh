# What the scripts share that build programs from the Go module proxy into a cache. Sourced, never run.
# The cache lies in $PROVER_OPERATOR_CACHE, else in ~/.cache/prover-operator.
cache=${PROVER_OPERATOR_CACHE:-$HOME/.cache/prover-operator}

# Prints the version that a go.mod requires: required_version GO_MOD MODULE
required_version() {
  local version
  version=$(sed -nE "s|^(require)?[[:space:]]*$2 (v[^ ]+)( // indirect)?$|\2|p" "$1")
  [ -n "$version" ] || { echo "$1 requires no exact version of $2" >&2; return 1; }
  echo "$version"
}

# Makes a folder of the cache and holds it until the script ends: two callers at once would build everything twice, so
# the second waits and then finds it done.
hold() {
  mkdir -p "$1"
  exec 9>"$1/.lock"
  flock 9
}

# Builds a program unless it is there: build_go TARGET MODULE_FOLDER PACKAGE WHAT_IS_BUILT [LINKER_FLAGS]
build_go() {
  local target=$1 module=$2 package=$3 what=$4 flags=${5:-}
  [ ! -x "$target" ] || return 0
  command -v go >/dev/null || { echo "go is missing: install Go 1.26 or newer, then run this again" >&2; return 1; }
  echo "building $what" >&2
  (
    cd "$module"
    CGO_ENABLED=0 GOFLAGS="-buildvcs=false -mod=readonly -p=${PROVER_GO_JOBS:-2}" nice -n "${PROVER_NICE:-5}" \
      go build -trimpath -o "$target.partial" -ldflags "-s -w $flags" "$package" >&2
  )
  # Only a whole binary gets its name: an interrupted build leaves nothing that looks finished.
  mv "$target.partial" "$target"
}
