#!/usr/bin/env bash
# Makes the authorities, certificates and kubeconfigs of a cluster, where they are missing.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
days=365
pki=$folder/pki
mkdir -p "$pki" && chmod 700 "$pki"
[ -f "$pki/complete" ] && exit 0

authority() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days "$days" -subj "/CN=$1" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign \
    -keyout "$pki/$1.key" -out "$pki/$1.crt" 2>/dev/null
}

# leaf FILE AUTHORITY SUBJECT USAGE [ALTERNATIVE NAMES]
leaf() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$3" -keyout "$pki/$1.key" -out "$pki/$1.csr" 2>/dev/null
  {
    echo "basicConstraints=critical,CA:FALSE"
    echo "keyUsage=critical,digitalSignature"
    echo "extendedKeyUsage=$4"
    [ -z "${5:-}" ] || echo "subjectAltName=$5"
  } >"$pki/$1.extensions"
  openssl x509 -req -in "$pki/$1.csr" -CA "$pki/$2.crt" -CAkey "$pki/$2.key" -CAcreateserial -days "$days" \
    -extfile "$pki/$1.extensions" -out "$pki/$1.crt" 2>/dev/null
  rm "$pki/$1.csr" "$pki/$1.extensions"
}

# kubeconfig FILE CERTIFICATE [SERVER]
kubeconfig_for() {
  local encode="base64 -w0"
  cat >"$1" <<END
apiVersion: v1
kind: Config
clusters:
- name: prover-operator
  cluster:
    server: ${3:-https://$node_address:6443}
    certificate-authority-data: $($encode "$pki/authority.crt")
users:
- name: $2
  user:
    client-certificate-data: $($encode "$pki/$2.crt")
    client-key-data: $($encode "$pki/$2.key")
contexts:
- name: prover-operator
  context: {cluster: prover-operator, user: $2}
current-context: prover-operator
END
  chmod 600 "$1"
}

authority authority
authority front-proxy-authority
leaf apiserver authority /CN=kube-apiserver serverAuth "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:$node_address,IP:$api_service_address"
leaf apiserver-kubelet-client authority /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
leaf front-proxy-client front-proxy-authority /CN=front-proxy-client clientAuth
leaf admin authority /O=system:masters/CN=admin clientAuth
leaf controller-manager authority /CN=system:kube-controller-manager clientAuth
leaf scheduler authority /CN=system:kube-scheduler clientAuth
leaf proxy authority /CN=system:kube-proxy clientAuth
leaf kubelet authority "/O=system:nodes/CN=system:node:$node_name" clientAuth,serverAuth "DNS:$node_name,IP:$node_address"
# RSA, since that is what kubeadm makes and what verifiers of tokens meet first.
openssl genrsa -out "$pki/service-accounts.key" 2048 2>/dev/null
openssl rsa -in "$pki/service-accounts.key" -pubout -out "$pki/service-accounts.pub" 2>/dev/null

kubeconfig_for "$folder/admin.kubeconfig" admin
for component in controller-manager scheduler proxy kubelet; do
  kubeconfig_for "$pki/$component.kubeconfig" "$component"
done
touch "$pki/complete"
