{{/*
What the operator may do in the namespaces that it looks at. It makes Roles for coordinators, and the API server lets it
grant only what it holds itself: parts that are granted to coordinators say so.
*/}}
{{- define "prover-operator.rules" -}}
# The objects it looks after. Jobs are deleted when their time to live is over.
- apiGroups: ["proving.rs"]
  resources: ["proverclusters"]
  verbs: ["get", "list", "watch", "patch"]
- apiGroups: ["proving.rs"]
  resources: ["proofjobs"]
  verbs: ["get", "list", "watch", "patch", "delete"]
# Status of clusters, and of jobs that no cluster takes; that of all others is granted to coordinators.
- apiGroups: ["proving.rs"]
  resources: ["proverclusters/status", "proofjobs/status"]
  verbs: ["patch"]
# An API server may ask for this of those who name an owner that waits for its dependants.
- apiGroups: ["proving.rs"]
  resources: ["proverclusters/finalizers", "proofjobs/finalizers"]
  verbs: ["update"]
# Coordinators and workers, their replicas, and images that are fetched early.
- apiGroups: ["apps"]
  resources: ["deployments", "daemonsets"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
- apiGroups: ["apps"]
  resources: ["deployments/scale"]
  verbs: ["get", "patch"]
- apiGroups: [""]
  resources: ["services", "serviceaccounts", "configmaps"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
# Certificates of coordinators, watched by label, which no rule can express. Reading single ones is granted to
# coordinators: sources of jobs.
- apiGroups: [""]
  resources: ["secrets"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
# Patched with the order in which they leave; watching is granted to coordinators.
- apiGroups: [""]
  resources: ["pods"]
  verbs: ["get", "list", "watch", "patch"]
# Granted to coordinators, which take their lead with a Lease.
- apiGroups: ["coordination.k8s.io"]
  resources: ["leases"]
  verbs: ["get", "create", "update"]
- apiGroups: ["policy"]
  resources: ["poddisruptionbudgets"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
- apiGroups: ["networking.k8s.io"]
  resources: ["networkpolicies"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
- apiGroups: ["rbac.authorization.k8s.io"]
  resources: ["roles", "rolebindings"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
- apiGroups: ["events.k8s.io"]
  resources: ["events"]
  verbs: ["create", "patch"]
{{- end }}

{{- define "prover-operator.subjects" -}}
- kind: ServiceAccount
  name: {{ include "prover-operator.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}
