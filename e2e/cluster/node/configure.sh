#!/usr/bin/env bash
# Writes the configuration of the node's programs into the cluster's folder. Paths are those inside the node.
set -euo pipefail
source "$(dirname "$0")/../settings.sh"
config=$folder/config
mkdir -p "$config/cni"

cat >"$config/containerd.toml" <<END
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:$version"
  # Root without CAP_SYS_RESOURCE may not lower its score, and then no sandbox would start.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/mnt/config/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
END

# ptp and not bridge: pods on one bridge answer each other past the address translation of Services.
cat >"$config/cni/10-pods.conflist" <<END
{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {
      "type": "ptp",
      "ipMasq": true,
      "ipam": {
        "type": "host-local",
        "dataDir": "/run/cni-addresses",
        "ranges": [[{"subnet": "$pod_range"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
END

echo "# No name outside the cluster resolves here." >"$config/resolv.conf"

cat >"$config/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: /mnt/pki/authority.crt}
authorization: {mode: Webhook}
tlsCertFile: /mnt/pki/kubelet.crt
tlsPrivateKeyFile: /mnt/pki/kubelet.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$group
failSwapOn: false
clusterDNS: [$dns_address]
clusterDomain: cluster.local
resolvConf: /mnt/config/resolv.conf
# Imported images can't be pulled again, so nothing may collect them.
imageGCHighThresholdPercent: 100
evictionHard:
  memory.available: 100Mi
  nodefs.available: 1%
  nodefs.inodesFree: 1%
  imagefs.available: 1%
maxPods: 200
serializeImagePulls: false
END

cat >"$config/proxy.yaml" <<END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clusterCIDR: $pod_range
clientConnection: {kubeconfig: /mnt/pki/proxy.kubeconfig}
hostnameOverride: $node_name
# The limits of connection tracking belong to the machine and can't be written from the node's network namespace.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
END
