#!/usr/bin/env bash
# Stops, starts or restarts one program of the node, as faults in tests need:
# component.sh stop|start|restart etcd|kube-apiserver|kube-controller-manager|kube-scheduler|containerd|kubelet|kube-proxy
set -euo pipefail
source "$(dirname "$0")/settings.sh"
action=${1:-} name=${2:-}
[ -f "$folder/run/$name.pid" ] || fail "there is no program '$name' in the node: choose from $(cd "$folder/run" && echo *.pid | sed 's/\.pid//g')"

stop() {
  local process
  process=$(<"$folder/run/$name.pid")
  in_node kill "$process" 2>/dev/null || return 0
  # kube-apiserver would wait a minute for its watches to end: what a fault takes down does not.
  in_node bash -c 'for _ in $(seq 20); do kill -0 "$0" 2>/dev/null || exit 0; sleep 0.1; done; kill -KILL "$0"' "$process"
}

case $action in
  stop) touch "$folder/run/$name.stopped" && stop ;;
  start) rm -f "$folder/run/$name.stopped" ;;
  restart) stop ;;
  *) fail "say stop, start or restart, not '$action'" ;;
esac
