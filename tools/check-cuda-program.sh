#!/usr/bin/env bash
# Whether a backend built for GPUs is one, without a GPU: check-cuda-program.sh PROGRAM ARCHITECTURES CUOBJDUMP
# It has kernels for each architecture (CUDA's numbers with commas between them), CUDA's runtime is inside it, and it asks
# the system for nothing that is not there. Where no GPU is, the process of a device says so in one sentence and ends, and
# what needs no GPU runs.
set -euo pipefail
program=$1 architectures=$2 cuobjdump=$3
fail() { echo "$program: $1" >&2; exit 1; }

listed=$("$cuobjdump" --list-elf "$program")
for architecture in ${architectures//,/ }; do
  grep -q "\.sm_$architecture[a-z]*\.cubin$" <<<"$listed" || fail "it has no kernels for architecture $architecture"
  echo "$program: has kernels for architecture $architecture"
done

symbols=$(nm --defined-only "$program")
grep -q ' [TtWw] cudaLaunchKernel$' <<<"$symbols" || fail "CUDA's runtime is not in it"

libraries=$(ldd "$program")
! grep -q 'not found' <<<"$libraries" || fail "libraries are missing: $(grep 'not found' <<<"$libraries")"
! grep -q 'libcuda' <<<"$libraries" || fail "it would not start without CUDA's libraries: $libraries"
echo "$program: CUDA's runtime is inside; its libraries: $(awk '{print $1}' <<<"$libraries" | tr '\n' ' ')"

# What a process says on standard error, and its exit code as the last line.
started() {
  local code=0
  env -i "$@" 2>&1 >/dev/null || code=$?
  echo "exit code $code"
}
agent=PROVER_AGENT_SOCKET=/nonexistent/agent.sock
if [ ! -e /dev/nvidiactl ]; then
  said=$(started "$agent" PROVER_DEVICE=gpu-0 PROVER_DEVICE_KIND=gpu "$program")
  echo "$said"
  [ "$(wc -l <<<"$said")" -eq 2 ] && grep -q 'there is no GPU' <<<"$said" && grep -qx 'exit code 2' <<<"$said" ||
    fail "without a GPU the process of a device must say so in one line"
fi
said=$(started "$agent" PROVER_DEVICE=cpu-0 PROVER_DEVICE_KIND=cpu "$program")
grep -q 'device.gpu' <<<"$said" && grep -qx 'exit code 2' <<<"$said" || fail "it must not serve processor cores: $said"
# It gets as far as the agent, which is not there.
said=$(started "$agent" PROVER_DEVICE=control PROVER_DEVICE_KIND=gpu "$program")
grep -q '/nonexistent/agent.sock' <<<"$said" && grep -qx 'exit code 3' <<<"$said" || fail "planners need no GPU: $said"
# Users verify without a GPU; this is no proof.
said=$(started "$program" verify --proof /dev/null --program-id "$(printf '%064d' 0)")
grep -qxE 'exit code [12]' <<<"$said" && ! grep -q 'GPU' <<<"$said" || fail "verification needs no GPU: $said"
echo "$program: planners and verification need no GPU"
