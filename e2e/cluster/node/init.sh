#!/usr/bin/env bash
# First process of the node: mounts what is the node's own, starts its programs and starts them again when they end.
#
# It runs in PID, mount, network, IPC and UTS namespaces of its own, so that when it is killed every process, mount,
# interface and packet filter rule of the cluster goes with it.
set -uo pipefail
source "$(dirname "$0")/../settings.sh"
programs=$(kubernetes_folder)

mount_node() {
  mount --make-rprivate /
  mount -t proc proc /proc
  # The cluster's folder has one path inside the node, whatever the user chose.
  mount --bind "$folder" /mnt
  mount --bind "$programs" /mnt/bin
  mount --bind /mnt/var-lib /var/lib
  mount --bind /mnt/var-log /var/log
  mount --bind /mnt/tmp /tmp
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /run/lock /run/containerd
  # The kubelet passes mounts on to containers, which needs a shared tree.
  mount --make-rshared /
  # The kubelet insists on these values; a file over each keeps it from changing the whole machine.
  local tunable
  for tunable in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    local file=/run/tunables/${tunable%=*}
    mkdir -p "$(dirname "$file")"
    echo "${tunable#*=}" >"$file"
    mount --bind "$file" "/proc/sys/${tunable%=*}"
  done
}

network_node() {
  hostname "$node_name"
  ip link set lo up
  # The machine moves the other end of the link into this namespace and then writes a line.
  read -r _ <"/mnt/run/network"
  echo 1 >/proc/sys/net/ipv4/ip_forward
}

# supervise NAME COMMAND...: one program, started again a second after it ended, but not while NAME.stopped exists.
supervise() {
  local name=$1
  shift
  (
    while true; do
      while [ -e "/mnt/run/$name.stopped" ]; do sleep 0.2; done
      "$@" >>"/mnt/log/$name.log" 2>&1 &
      echo $! >"/mnt/run/$name.pid"
      wait $!
      echo "$(date -u +%FT%TZ) $name ended with $?" >>/mnt/log/node.log
      sleep 1
    done
  ) &
}

mount_node
network_node
rm -f /mnt/run/*.stopped

supervise etcd etcd --data-dir /var/lib/etcd --unsafe-no-fsync --logger zap --log-level warn \
  --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
  --listen-peer-urls http://127.0.0.1:2380 --auto-compaction-retention 10m \
  --listen-metrics-urls http://127.0.0.1:2381
supervise kube-apiserver /mnt/bin/kube-apiserver \
  --advertise-address "$node_address" --secure-port 6443 --etcd-servers http://127.0.0.1:2379 \
  --service-cluster-ip-range "$service_range" --allow-privileged --authorization-mode Node,RBAC \
  --enable-admission-plugins NodeRestriction --client-ca-file /mnt/pki/authority.crt \
  --tls-cert-file /mnt/pki/apiserver.crt --tls-private-key-file /mnt/pki/apiserver.key \
  --kubelet-certificate-authority /mnt/pki/authority.crt --kubelet-preferred-address-types InternalIP \
  --kubelet-client-certificate /mnt/pki/apiserver-kubelet-client.crt \
  --kubelet-client-key /mnt/pki/apiserver-kubelet-client.key \
  --service-account-issuer https://kubernetes.default.svc.cluster.local \
  --service-account-key-file /mnt/pki/service-accounts.pub \
  --service-account-signing-key-file /mnt/pki/service-accounts.key \
  --requestheader-client-ca-file /mnt/pki/front-proxy-authority.crt --requestheader-allowed-names front-proxy-client \
  --requestheader-extra-headers-prefix X-Remote-Extra- --requestheader-group-headers X-Remote-Group \
  --requestheader-username-headers X-Remote-User \
  --proxy-client-cert-file /mnt/pki/front-proxy-client.crt --proxy-client-key-file /mnt/pki/front-proxy-client.key
supervise kube-controller-manager /mnt/bin/kube-controller-manager \
  --kubeconfig /mnt/pki/controller-manager.kubeconfig --leader-elect=false --use-service-account-credentials \
  --authentication-kubeconfig /mnt/pki/controller-manager.kubeconfig \
  --authorization-kubeconfig /mnt/pki/controller-manager.kubeconfig \
  --service-account-private-key-file /mnt/pki/service-accounts.key --root-ca-file /mnt/pki/authority.crt \
  --cluster-signing-cert-file /mnt/pki/authority.crt --cluster-signing-key-file /mnt/pki/authority.key \
  --requestheader-client-ca-file /mnt/pki/front-proxy-authority.crt --bind-address 127.0.0.1
supervise kube-scheduler /mnt/bin/kube-scheduler --kubeconfig /mnt/pki/scheduler.kubeconfig --leader-elect=false \
  --authentication-kubeconfig /mnt/pki/scheduler.kubeconfig --authorization-kubeconfig /mnt/pki/scheduler.kubeconfig \
  --bind-address 127.0.0.1
supervise containerd containerd --config /mnt/config/containerd.toml
supervise kubelet /mnt/bin/kubelet --config /mnt/config/kubelet.yaml --kubeconfig /mnt/pki/kubelet.kubeconfig \
  --hostname-override "$node_name" --node-ip "$node_address"
supervise kube-proxy /mnt/bin/kube-proxy --config /mnt/config/proxy.yaml

# As first process it also inherits and reaps what containers leave behind.
while true; do wait; sleep 1; done
