#!/usr/bin/env bash
# Builds the container images as archives target/images/NAME.tar, without a container engine: images.sh [NAME...]
# With `--root NAME FOLDER`, writes the files of one image into a folder instead (images/Containerfile does).
#
# An image holds its programs, the shared libraries that they need, and what a process expects of a system: users, the
# certificates of public authorities, /tmp. Nothing else: no shell, no package manager. What has not changed is not
# built again.
#   IMAGE_REGISTRY   first part of the images' names (localhost)
#   IMAGE_TAG        tag (the version of the workspace)
#   PROFILE          release or dev: dev builds faster, for trying things out (not for the small static programs)
set -euo pipefail
cd "$(dirname "$0")/.."
registry=${IMAGE_REGISTRY:-localhost}
version=${IMAGE_TAG:-$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)}
profile=${PROFILE:-release}
case $profile in
  release) built=release ;;
  dev) built=debug ;;
  *) echo "PROFILE is $profile: set it to release or dev" >&2; exit 2 ;;
esac
target=${CARGO_TARGET_DIR:-target}
static_target=x86_64-unknown-linux-gnu
# prover-backend-sp1 and prover-backend-sp1-cuda are built only where they are named: they take half an hour of two cores
# the first time.
all=(prover-operator prover-worker prover-backend-risc0 prover-backend-emulated prover-sample-gnark)

# The programs of an image; the first one is its entrypoint.
programs_of() {
  case $1 in
    prover-worker) echo prover-worker prover-supervisor prover-backend-command ;;
    prover-operator | prover-backend-risc0 | prover-backend-sp1 | prover-backend-sp1-cuda | prover-backend-emulated | \
      prover-sample-gnark)
      echo "$1" ;;
    *)
      echo "there is no image $1: choose from ${all[*]} prover-backend-sp1 prover-backend-sp1-cuda" >&2
      return 2 ;;
  esac
}

# Where a program lies once it is built.
path_of() {
  case $1 in
    prover-supervisor | prover-backend-command) echo "$target/static/$static_target/release/$1" ;;
    prover-backend-risc0 | prover-backend-sp1) echo "target/bin/$1" ;;
    prover-backend-sp1-cuda) echo target/bin/cuda/prover-backend-sp1 ;;
    prover-sample-gnark) echo "target/samples/$1" ;;
    *) echo "$target/$built/$1" ;;
  esac
}

# Where it lies in its image: a worker starts the backend of a proof system by one name, whatever it was built for.
installed_at() { echo "/usr/local/bin/${1%-cuda}"; }

# Builds programs, those of one kind together.
build() {
  local light=() static=() program
  for program in "$@"; do
    case $program in
      prover-supervisor | prover-backend-command) static+=(--package "$program") ;;
      prover-backend-risc0) tools/build-backend-risc0.sh ;;
      prover-backend-sp1) tools/build-backend-sp1.sh ;;
      prover-backend-sp1-cuda) tools/build-backend-sp1.sh cuda ;;
      prover-sample-gnark) config/samples/command/gnark/build.sh "$(path_of "$program")" ;;
      *) light+=(--package "$program") ;;
    esac
  done
  [ ${#light[@]} -eq 0 ] || cargo build --locked --profile "$profile" "${light[@]}"
  # These run in images of users, which have other libraries or none.
  [ ${#static[@]} -eq 0 ] || CARGO_TARGET_DIR=$target/static RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --locked --release --target "$static_target" "${static[@]}"
}

# The shared libraries of programs, the loader among them.
libraries_of() {
  local program
  for program in "$@"; do
    # A static program has none, and ldd says so by failing.
    { ldd "$(path_of "$program")" 2>/dev/null | grep -o '/[^ ]*'; } || true
  done | sort -u
}

# Lays out what all images have, and the libraries of the programs: lay_out_base FOLDER PROGRAM...
lay_out_base() {
  local folder=$1 library
  shift
  mkdir -p "$folder"/etc/ssl/certs "$folder"/tmp
  echo 'root:x:0:0:root:/root:/sbin/nologin
prover:x:65532:65532:prover:/tmp:/sbin/nologin' >"$folder/etc/passwd"
  echo 'root:x:0:
prover:x:65532:' >"$folder/etc/group"
  echo 'hosts: files dns' >"$folder/etc/nsswitch.conf"
  cp --dereference /etc/ssl/certs/ca-certificates.crt "$folder/etc/ssl/certs/ca-certificates.crt"
  for library in $(libraries_of "$@"); do
    mkdir -p "$folder$(dirname "$library")"
    cp --dereference "$library" "$folder$library"
  done
  chmod -R u=rwX,go=rX "$folder"
  chmod 1777 "$folder/tmp"
}

# Lays out the programs: lay_out_programs FOLDER PROGRAM...
lay_out_programs() {
  local folder=$1 program installed
  shift
  mkdir -p "$folder/usr/local/bin"
  for program in "$@"; do
    installed=$folder$(installed_at "$program")
    install -m 0755 "$(path_of "$program")" "$installed"
    # Debug information would be most of the image.
    [ "$profile" = release ] || strip --strip-debug "$installed"
  done
  chmod -R u=rwX,go=rX "$folder"
}

# Everything that an image is made from, as one hash.
inputs() {
  local image=$1 program
  shift
  {
    echo "$registry $version $profile ${IMAGE_SOURCE:-} ${IMAGE_REVISION:-} ${SOURCE_DATE_EPOCH:-}"
    sha256sum tools/images.sh tools/image-archive.sh /etc/ssl/certs/ca-certificates.crt $(libraries_of "$@")
    for program in "$@"; do sha256sum "$(path_of "$program")"; done
  } | sha256sum | cut -d' ' -f1
}

archive() {
  local image=$1 archive=target/images/$1.tar programs work hash
  read -ra programs <<<"$(programs_of "$image")"
  hash=$(inputs "$image" "${programs[@]}")
  if [ -f "$archive" ] && [ "$(cat "target/images/.$image.inputs" 2>/dev/null)" = "$hash" ]; then
    printf '%-26s %5s MB  unchanged\n' "$image" "$(($(stat -c %s "$archive") / 1000000))"
    return
  fi
  work=$(mktemp -d)
  lay_out_base "$work/base" "${programs[@]}"
  lay_out_programs "$work/programs" "${programs[@]}"
  tools/image-archive.sh "$archive" "$registry/$image:$version" "$(installed_at "${programs[0]}")" "$work/base" "$work/programs"
  rm -rf "$work"
  echo "$hash" >"target/images/.$image.inputs"
  printf '%-26s %5s MB  %s\n' "$image" "$(($(stat -c %s "$archive") / 1000000))" "$registry/$image:$version"
}

if [ "${1:-}" = --root ]; then
  [ $# -eq 3 ] || { echo "usage: $0 --root NAME FOLDER" >&2; exit 2; }
  read -ra programs <<<"$(programs_of "$2")"
  build "${programs[@]}"
  lay_out_base "$3" "${programs[@]}"
  lay_out_programs "$3" "${programs[@]}"
  exit
fi

[ $# -gt 0 ] || set -- "${all[@]}"
mkdir -p target/images
needed=()
for image in "$@"; do
  read -ra programs <<<"$(programs_of "$image")"
  needed+=("${programs[@]}")
done
build "${needed[@]}"
for image in "$@"; do archive "$image"; done
