# For scripts that compile for CUDA, where no GPU and no driver need be; sourced in the repository's root. cuda_toolkit sets
#   CUDA_ROOT         a CUDA toolkit: that of CUDA_PATH if it is set, else the one of tools/cuda-toolkit.txt, which comes
#                     from the Python package registry into the cache folder (130 MB to fetch, 360 MB on disk)
#   CUDA_VERSION      its version
#   CUDA_PATH         a folder whose lib64 has the static runtime and nothing else, so that no program needs libcudart
#   CUOBJDUMP         lists what a program has for GPUs
#   CUDACXX, CUDAToolkit_ROOT, PATH  for CMake, and one that knows CUDA 13
cuda_toolkit() {
  local cache=${PROVER_OPERATOR_CACHE:-$HOME/.cache/prover-operator} folder library
  folder=$cache/cuda-$(sha256sum tools/cuda-toolkit.txt | cut -c1-12)
  # Two checkouts may share the cache.
  mkdir -p "$cache"
  exec 8>"$cache/.cuda.lock"
  flock 8
  if [ ! -f "$folder/.complete" ]; then
    rm -rf "$folder"
    tools/prerequisites.sh cuda
    python3 -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes --only-binary :all: \
      --target "$folder" --requirement tools/cuda-toolkit.txt
    ln -s lib "$folder/nvidia/cu13/lib64"
    ln -s libcudart.so.13 "$folder/nvidia/cu13/lib/libcudart.so"
    touch "$folder/.complete"
  fi
  flock -u 8
  CUDA_ROOT=${CUDA_PATH:-$folder/nvidia/cu13}
  if [ ! -x "$CUDA_ROOT/bin/nvcc" ]; then
    echo "there is no bin/nvcc in CUDA_PATH, $CUDA_ROOT: set it to the folder of a CUDA toolkit, or not at all" >&2
    exit 2
  fi
  CUDA_VERSION=$("$CUDA_ROOT/bin/nvcc" --version | sed -n 's/.*, V\([0-9.]*\).*/\1/p')
  CUDA_PATH=$CARGO_TARGET_DIR/cuda-$CUDA_VERSION
  CUOBJDUMP=$folder/nvidia/cu13/bin/cuobjdump
  mkdir -p "$CUDA_PATH/lib64"
  for library in cudart_static=cudart cudadevrt=cudadevrt; do
    ln -sfn "$CUDA_ROOT/lib64/lib${library%=*}.a" "$CUDA_PATH/lib64/lib${library#*=}.a"
  done
  export CUDA_PATH CUDACXX=$CUDA_ROOT/bin/nvcc CUDAToolkit_ROOT=$CUDA_ROOT PATH=$folder/cmake/data/bin:$PATH
}
