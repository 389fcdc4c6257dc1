#!/usr/bin/env bash
# Installs what the cluster itself needs: DNS for Services, MinIO with its bucket, simulated GPUs.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
bucket=proofs

if [ ! -f "$folder/minio.env" ]; then
  (
    umask 077
    echo "minio_user=prover" >"$folder/minio.env.new"
    echo "minio_password=$(openssl rand -hex 16)" >>"$folder/minio.env.new"
    mv "$folder/minio.env.new" "$folder/minio.env"
  )
fi
source "$folder/minio.env"

# Fills in the variables that manifests name, and nothing else.
render() {
  local text name
  text=$(<"$1")
  for name in registry version dns_address minio_user minio_password gpus; do
    text=${text//"\${$name}"/${!name}}
  done
  echo "$text"
}

for manifest in "$here"/manifests/*.yaml; do
  render "$manifest" | kubectl apply --server-side --field-manager=cluster-up --force-conflicts -f - >/dev/null
done
for workload in kube-system/deployment/coredns kube-system/daemonset/simulated-gpus minio/deployment/minio; do
  kubectl --namespace "${workload%%/*}" rollout status "${workload#*/}" --timeout=120s >/dev/null
done

# The bucket is made by a signed request from here: 409 says that it is there already.
address=$(kubectl --namespace minio get service minio --output jsonpath='{.spec.clusterIP}')
# Credentials come from a file, since arguments are seen by every process of the machine.
answer=$(curl --config <(echo "user = $minio_user:$minio_password") --aws-sigv4 aws:amz:us-east-1:s3 \
  --silent --show-error --retry 10 --retry-connrefused --retry-delay 1 --noproxy '*' \
  --output /dev/null --write-out '%{http_code}' --request PUT "http://$address:9000/$bucket")
[ "$answer" = 200 ] || [ "$answer" = 409 ] || fail "MinIO answered $answer when asked for the bucket $bucket"
