#!/usr/bin/env bash
# Starts a single-node Kubernetes with MinIO and simulated GPUs, or completes one that runs already.
# Calling it again changes nothing. See settings.sh for what can be chosen.
set -euo pipefail
source "$(dirname "$0")/settings.sh"

if [ "$mode" = existing ]; then
  exec "$here/existing.sh"
fi
[ "$mode" = own ] || fail "PROVER_CLUSTER is '$mode': choose own or existing"
need_root
"$here/prerequisites.sh"
mkdir -p "$folder"
exec 8>"$folder/.lock"
flock 8

make_folders() {
  mkdir -p "$folder"/{bin,config,log,run,tmp,var-log,var-lib/etcd,var-lib/minio}
  chmod 755 "$folder"
  chmod 1777 "$folder/tmp"
  chown 65532:65532 "$folder/var-lib/minio"
}

# A route to these addresses that is not the default one belongs to somebody else.
check_network() {
  local address
  for address in "$node_address" "$api_service_address" "$network.128.1"; do
    if ip route get "$address" 2>/dev/null | grep -q " dev $link "; then continue; fi
    if ip route show match "$address" | grep -qv '^default'; then
      fail "$address is in use on this machine: choose two other numbers with PROVER_CLUSTER_NETWORK"
    fi
  done
}

make_control_groups() {
  local hierarchy
  while read -r hierarchy; do
    mkdir -p "$hierarchy/$group"
    if [ -f "$hierarchy/cgroup.controllers" ]; then
      # Under version 2 controllers are handed down explicitly.
      sed 's/\(\w\+\)/+\1/g' "$hierarchy/cgroup.controllers" >"$hierarchy/cgroup.subtree_control"
      sed 's/\(\w\+\)/+\1/g' "$hierarchy/$group/cgroup.controllers" >"$hierarchy/$group/cgroup.subtree_control"
    fi
    mkdir -p "$hierarchy/$group/system"
    local each file
    for each in "$hierarchy/$group" "$hierarchy/$group/system"; do
      for file in cpuset.cpus cpuset.mems; do
        # A cpuset of version 1 takes no process before it has processors and memory.
        if [ -f "$hierarchy/$file" ]; then cat "$hierarchy/$file" >"$each/$file"; fi
      done
    done
  done < <(control_groups)
}

enter_control_groups() {
  local hierarchy
  while read -r hierarchy; do echo "$1" >"$hierarchy/$group/system/cgroup.procs"; done < <(control_groups)
}

start_node() {
  local starter process
  rm -f "$folder/run/network" && mkfifo "$folder/run/network"
  (
    exec 8>&- </dev/null >>"$folder/log/node.log" 2>&1
    enter_control_groups "$BASHPID"
    exec setsid env --ignore-environment PATH="$PATH" HOME=/root PROVER_CLUSTER_DIRECTORY="$folder" \
      PROVER_CLUSTER_NETWORK="$network" PROVER_OPERATOR_CACHE="$cache" \
      unshare --mount --uts --ipc --net --pid --fork --kill-child --propagation private "$here/node/init.sh"
  ) &
  starter=$!
  # Before it is unshare, its children are those of the shell that it was.
  until [ "$(cat "/proc/$starter/comm" 2>/dev/null)" = unshare ] &&
    process=$(cat "/proc/$starter/task/$starter/children" 2>/dev/null) && [ -n "$process" ]; do
    kill -0 "$starter" 2>/dev/null || fail "the node did not start, see $folder/log/node.log"
    sleep 0.05
  done
  process=${process// /}
  echo "$process $(started_at "$process")" >"$folder/run/node"
  ip link add "$link" type veth peer name eth0 netns "$process"
  ip address add "$host_address/30" dev "$link"
  ip link set "$link" up
  nsenter --target "$process" --net -- ip address add "$node_address/30" dev eth0
  nsenter --target "$process" --net -- ip link set eth0 up
  nsenter --target "$process" --net -- ip route add default via "$host_address"
  ip route add "$service_range" via "$node_address" dev "$link"
  ip route add "$pod_range" via "$node_address" dev "$link"
  echo ready >"$folder/run/network"
}

# await NAME SECONDS COMMAND...: the machine may be busy, so the limits are generous.
await() {
  local what=$1 limit=$2 begin=$SECONDS
  shift 2
  until "$@" >/dev/null 2>&1; do
    if [ $((SECONDS - begin)) -ge "$limit" ]; then
      fail "$what is not ready after $limit s, see $folder/log and 'kubectl get pods -A'"
    fi
    sleep 0.3
  done
}

if node_process >/dev/null; then
  say "runs already in $folder"
else
  # What a machine that lost power, or a killed node, left behind.
  "$here/down.sh" --keep-files
  check_network
  make_folders
  "$here/certificates.sh"
  "$here/node/configure.sh"
  make_control_groups
  say "starting a node in $folder, addresses $network.0.0/16"
  start_node
fi

await kube-apiserver 120 kubectl get --raw /readyz
await containerd 60 in_node ctr version
"$here/images.sh"
await "the node" 120 kubectl wait --for=condition=Ready "node/$node_name" --timeout=5s
"$here/services.sh"
say "ready: export KUBECONFIG=$folder/admin.kubeconfig"
