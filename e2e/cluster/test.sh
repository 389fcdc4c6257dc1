#!/usr/bin/env bash
# Starts a second cluster beside any other, checks what cluster-up promises, stops it and compares the machine with before.
set -euo pipefail
export PROVER_CLUSTER=own PROVER_CLUSTER_NETWORK=${PROVER_TEST_NETWORK:-10.219}
work=$(mktemp -d)
export PROVER_CLUSTER_DIRECTORY=$work/cluster
source "$(dirname "$0")/settings.sh"
finish() {
  local status=$?
  [ $status -eq 0 ] || tail -n 20 "$folder"/log/*.log >&2 2>/dev/null || true
  "$here/down.sh" || status=1
  rm -rf "$work"
  exit $status
}
trap finish EXIT

# What a cluster could leave on a machine, without what changes by itself and what another cluster has.
snapshot() {
  ip -brief address | sed 's/@.*UP/ UP/' | grep "$network\|$link" || true
  ip route | grep "$network" || true
  iptables-save 2>/dev/null | grep -v '^#' | grep "$network\|KUBE" || true
  grep "$work" /proc/mounts || true
  ip netns list
  ls -d /var/lib/kubelet /var/lib/cni /var/lib/etcd /run/containerd /etc/cni /var/log/pods 2>/dev/null || true
  for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys \
    net/ipv4/ip_forward net/netfilter/nf_conntrack_max; do
    echo "$name $(cat "/proc/sys/$name" 2>/dev/null)"
  done
  find /sys/fs/cgroup -maxdepth 2 -name "$group"
  # Nothing of this cluster may run: its programs all name its folder or live in its namespaces.
  for process in /proc/[0-9]*; do
    tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -qx "PROVER_CLUSTER_DIRECTORY=$folder" || continue
    [ "$(ps -o pgid= -p "${process#/proc/}" | tr -d ' ')" = "$(ps -o pgid= -p $$ | tr -d ' ')" ] || echo "process ${process#/proc/}"
  done
}

# check WHAT COMMAND...
check() {
  local what=$1
  shift
  "$@" >/dev/null || fail "FAILED: $what"
  say "ok: $what"
}

snapshot >"$work/before"
"$here/up.sh"

before=$(kubectl get all,secrets,configmaps --all-namespaces --output jsonpath='{range .items[*]}{.metadata.uid} {.metadata.resourceVersion}{"\n"}{end}' | sort)
processes=$(cat "$folder"/run/*.pid)
begin=$(date +%s%N)
"$here/up.sh"
say "second cluster-up: $((($(date +%s%N) - begin) / 1000000)) ms"
after=$(kubectl get all,secrets,configmaps --all-namespaces --output jsonpath='{range .items[*]}{.metadata.uid} {.metadata.resourceVersion}{"\n"}{end}' | sort)
[ "$before" = "$after" ] || fail "a second cluster-up changed objects: $(diff <(echo "$before") <(echo "$after"))"
[ "$processes" = "$(cat "$folder"/run/*.pid)" ] || fail "a second cluster-up restarted programs"

check "logs of a pod" kubectl --namespace minio logs deployment/minio
check "a command in a pod" kubectl --namespace minio exec deployment/minio -- /usr/local/bin/minio --version
gpus_offered() { [ "$(kubectl get node "$node_name" --output jsonpath='{.status.allocatable.nvidia\.com/gpu}')" = "$1" ]; }
eventually() { for _ in $(seq 300); do "$@" && return; sleep 0.1; done; return 1; }
check "simulated GPUs are offered" eventually gpus_offered "$gpus"
echo SIMULATED-0 | in_node tee /var/lib/kubelet/device-plugins/simulated-unhealthy >/dev/null
check "an unhealthy GPU is offered no more" eventually gpus_offered $((gpus - 1))
in_node rm /var/lib/kubelet/device-plugins/simulated-unhealthy
check "a healthy one is offered again" eventually gpus_offered "$gpus"
"$here/component.sh" restart kubelet
check "simulated GPUs survive a restart of the kubelet" eventually gpus_offered "$gpus"
# Tokens can be requested, and verified against keys that the cluster publishes to its ServiceAccounts.
token=$(kubectl create token default --audience proving.rs/workers/test/test)
[ "$(cut -d. -f1 <<<"$token" | base64 --decode 2>/dev/null | grep -c RS256)" = 1 ] || fail "no RS256 token: $token"
check "discovery of the token issuer" kubectl get --raw /.well-known/openid-configuration
issuer_token=$(kubectl create token default)
check "the issuer's keys, as a ServiceAccount" curl --fail --silent --show-error --noproxy '*' --cacert "$folder/pki/authority.crt" \
  --header "Authorization: Bearer $issuer_token" "https://$node_address:6443/openid/v1/jwks"
# Without a certificate or token nothing is told.
[ "$(curl --silent --noproxy '*' --cacert "$folder/pki/authority.crt" --output /dev/null --write-out '%{http_code}' \
  "https://$node_address:6443/api/v1/secrets")" = 403 ] || fail "an anonymous caller may list secrets"
[ "$(kubectl auth can-i get secrets --as system:kube-scheduler --namespace default || true)" = no ] || fail "the scheduler may read secrets"

say "memory of the idle cluster: $(($(cat /sys/fs/cgroup/memory/"$group"/memory.usage_in_bytes 2>/dev/null \
  || cat /sys/fs/cgroup/"$group"/memory.current) >> 20)) MiB with page cache"
"$here/down.sh"
snapshot >"$work/after"
diff "$work/before" "$work/after" >&2 || fail "cluster-down left something"
[ ! -e "$folder" ] || fail "cluster-down left files: $(find "$folder" | head)"
say "all checks passed"
