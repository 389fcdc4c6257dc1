{{/*
What the operator may do in the namespaces that it looks at. It makes Roles for coordinators, and the API server lets it
grant only what it holds itself: the rules that end with "granted" are there for that.
*/}}
{{- define "prover-operator.rules" -}}
# The objects it looks after.
- apiGroups: ["proving.rs"]
  resources: ["proverclusters"]
  verbs: ["get", "list", "watch", "update", "patch"]
- apiGroups: ["proving.rs"]
  resources: ["proverclusters/status", "proverclusters/finalizers"]
  verbs: ["get", "update", "patch"]
# Deleted when their time to live is over.
- apiGroups: ["proving.rs"]
  resources: ["proofjobs"]
  verbs: ["get", "list", "watch", "update", "patch", "delete"]
# Status of jobs that no cluster takes; granted to coordinators for all others.
- apiGroups: ["proving.rs"]
  resources: ["proofjobs/status", "proofjobs/finalizers"]
  verbs: ["get", "update", "patch"]
# Coordinators and workers.
- apiGroups: ["apps"]
  resources: ["deployments"]
  verbs: ["get", "list", "watch", "create", "update", "patch", "delete"]
- apiGroups: ["apps"]
  resources: ["deployments/scale"]
  verbs: ["get", "update", "patch"]
- apiGroups: ["apps"]
  resources: ["replicasets"]
  verbs: ["get", "list", "watch"]
- apiGroups: [""]
  resources: ["services", "serviceaccounts", "configmaps"]
  verbs: ["get", "list", "watch", "create", "update", "patch", "delete"]
# Certificates of coordinators. Reading single ones is granted to coordinators: sources of jobs. Nobody may list them.
- apiGroups: [""]
  resources: ["secrets"]
  verbs: ["get", "create", "update", "patch", "delete"]
# Patched with the order in which pods leave; watching is granted to coordinators.
- apiGroups: [""]
  resources: ["pods"]
  verbs: ["get", "list", "watch", "patch"]
- apiGroups: ["policy"]
  resources: ["poddisruptionbudgets"]
  verbs: ["get", "list", "watch", "create", "update", "patch", "delete"]
- apiGroups: ["networking.k8s.io"]
  resources: ["networkpolicies"]
  verbs: ["get", "list", "watch", "create", "update", "patch", "delete"]
- apiGroups: ["rbac.authorization.k8s.io"]
  resources: ["roles", "rolebindings"]
  verbs: ["get", "list", "watch", "create", "update", "patch", "delete"]
- apiGroups: ["events.k8s.io"]
  resources: ["events"]
  verbs: ["create", "patch"]
{{- end }}

{{/* What the operator reads of the whole cluster, whichever namespaces it looks at. */}}
{{- define "prover-operator.definitionRules" -}}
- apiGroups: ["apiextensions.k8s.io"]
  resources: ["customresourcedefinitions"]
  resourceNames: ["proofjobs.proving.rs", "proverclusters.proving.rs"]
  verbs: ["get"]
{{- end }}

{{- define "prover-operator.subjects" -}}
- kind: ServiceAccount
  name: {{ include "prover-operator.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}
