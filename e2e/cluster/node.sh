#!/usr/bin/env bash
# Runs a command inside the node: node.sh ctr --namespace k8s.io images list
set -euo pipefail
source "$(dirname "$0")/settings.sh"
in_node "$@"
