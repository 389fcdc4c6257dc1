# Where the cluster lies, which addresses it has, and what several scripts need. Sourced, never run.
#
# PROVER_CLUSTER_DIRECTORY  folder of everything that the cluster writes (default ~/.cache/prover-operator/cluster)
# PROVER_CLUSTER_NETWORK    first two numbers of its addresses (default 10.213): NETWORK.0.1 is this machine,
#                           NETWORK.0.2 the node, NETWORK.64.0/18 Services, NETWORK.128.0/18 pods
# PROVER_CLUSTER            "own" (default): this cluster; "existing": the one that KUBECONFIG names
# PROVER_CLUSTER_GPUS       how many simulated GPUs the node offers (default 8)
# IMAGE_REGISTRY            prefix of image names (default localhost)

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
source "$repository/e2e/tools/go-cache.sh"
mode=${PROVER_CLUSTER:-own}
folder=${PROVER_CLUSTER_DIRECTORY:-$cache/cluster}
network=${PROVER_CLUSTER_NETWORK:-10.213}
gpus=${PROVER_CLUSTER_GPUS:-8}
registry=${IMAGE_REGISTRY:-localhost}
version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"$/\1/p' "$repository/Cargo.toml")

node_name=prover-node
host_address=$network.0.1
node_address=$network.0.2
service_range=$network.64.0/18
api_service_address=$network.64.1
dns_address=$network.64.10
pod_range=$network.128.0/18
# An interface name has at most 15 characters, and two clusters differ in their network.
link=prv-${network/./-}
group=prover-cluster-${network/./-}
kubernetes_programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl)

say() { echo "cluster: $*" >&2; }
fail() { echo "cluster: $*" >&2; exit 1; }

[[ $network =~ ^[0-9]{1,3}\.[0-9]{1,3}$ ]] || fail "PROVER_CLUSTER_NETWORK is '$network': give two numbers such as 10.213"
[[ $folder == /* ]] || fail "PROVER_CLUSTER_DIRECTORY is '$folder': give an absolute path"

need_root() {
  [ "$(id -u)" -eq 0 ] || fail "a kubelet needs root: run this as root, or set PROVER_CLUSTER=existing and KUBECONFIG"
}

# Moment at which a process started, in ticks since boot: together with its id it names a process for ever.
started_at() { sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# The id of the node's first process, if it runs.
node_process() {
  local process start
  read -r process start 2>/dev/null <"$folder/run/node" || return 1
  [ "$(started_at "$process")" = "$start" ] && echo "$process"
}

# Runs a command inside the node, as `docker exec` would in kind.
in_node() {
  local process
  process=$(node_process) || fail "no cluster runs in $folder: run 'make cluster-up' first"
  nsenter --target "$process" --mount --uts --ipc --net --pid -- "$@"
}

kubectl() { "$(kubernetes_folder)/kubectl" --kubeconfig "$(kubeconfig)" "$@"; }

kubernetes_folder() {
  echo "$cache/kubernetes-$(required_version "$repository/e2e/tools/kubernetes/go.mod" k8s.io/kubernetes)"
}

kubeconfig() {
  if [ "$mode" = existing ]; then echo "${KUBECONFIG:-$HOME/.kube/config}"; else echo "$folder/admin.kubeconfig"; fi
}

# One folder per hierarchy of control groups: many under version 1, one under version 2.
control_groups() {
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    echo /sys/fs/cgroup
  else
    local hierarchy
    for hierarchy in /sys/fs/cgroup/*/; do
      hierarchy=${hierarchy%/}
      [ -L "$hierarchy" ] || [ ! -f "$hierarchy/cgroup.procs" ] || [ -f "$hierarchy/cgroup.controllers" ] || echo "$hierarchy"
    done
  fi
}
