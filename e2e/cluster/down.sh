#!/usr/bin/env bash
# Stops the cluster and removes what it wrote, except cached binaries. --keep-files keeps the folder.
set -euo pipefail
source "$(dirname "$0")/settings.sh"

if [ "$mode" = existing ]; then
  say "PROVER_CLUSTER=existing: a cluster that is not ours is left as it is"
  exit 0
fi
need_root
if process=$(node_process); then
  say "stopping the node in $folder"
  # The kernel kills every process of the namespace with its first one, and waits for them.
  kill -KILL "$process"
  while [ -e "/proc/$process" ]; do sleep 0.1; done
fi
# With the last process the network namespace goes, and with it the link; after a crash it may still be there.
if ip link show "$link" >/dev/null 2>&1; then ip link delete "$link" 2>/dev/null || true; fi
# Both layouts, and the unified hierarchy that runc uses beside those of version 1.
for control_group in /sys/fs/cgroup/"$group" /sys/fs/cgroup/*/"$group"; do
  [ -d "$control_group" ] && [ ! -L "$(dirname "$control_group")" ] || continue
  # A process that just died may hold its control group for a moment.
  for _ in $(seq 50); do
    find "$control_group" -depth -type d -exec rmdir {} + 2>/dev/null && break
    sleep 0.1
  done
  [ ! -d "$control_group" ] || fail "control group $control_group still has processes"
done
[ "${1:-}" = --keep-files ] && exit 0
# Only what a cluster wrote: the folder may be one that the user had before.
rm -rf "$folder"/{bin,config,images,log,pki,run,tmp,var-lib,var-log} "$folder"/{admin.kubeconfig,minio.env,.lock}
if [ -d "$folder" ]; then rmdir "$folder" 2>/dev/null || say "left in $folder: what no cluster wrote"; fi
