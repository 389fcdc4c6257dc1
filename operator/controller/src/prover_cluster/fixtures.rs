//! ProverClusters for tests.

use prover_crds::ProverCluster;
use serde_json::json;

use super::build::{Pins, Resources, Surroundings, build};
use super::validate::{Image, ValidatedCluster, validate};

/// The least that a ProverCluster needs.
pub(super) fn smallest() -> ProverCluster {
    serde_json::from_value(json!({
        "metadata": { "name": "main", "namespace": "proving", "uid": "11111111-2222-3333-4444-555555555555", "generation": 1 },
        "spec": {
            "artifactStore": { "s3": { "bucket": "proofs" } },
            "backends": [{ "name": "risc0", "system": "risc0", "image": "localhost/prover-backend-risc0:0.1.0" }],
            "workerGroups": [{
                "name": "cpu", "backend": "risc0", "device": { "cpu": {} }, "replicas": 2,
                "resources": { "cpu": "4", "memory": "4Gi" },
            }],
        },
    }))
    .expect("a good ProverCluster")
}

/// Every field that a ProverCluster has, or nearly so.
pub(super) fn everything() -> ProverCluster {
    let pod = json!({
        "labels": { "team": "zk" },
        "annotations": { "example.com/scrape": "true" },
        "nodeSelector": { "pool": "provers" },
        "requiredNodeLabels": [{ "key": "topology.kubernetes.io/region", "operator": "In", "values": ["eu"] }],
        "preferredNodeLabels": [{ "key": "disk", "operator": "Exists" }],
        "tolerations": [{ "key": "dedicated", "operator": "Equal", "value": "provers", "effect": "NoExecute" }],
        "topologySpread": [{ "topologyKey": "topology.kubernetes.io/zone", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule" }],
        "env": [
            { "name": "RUST_LOG", "value": "info" },
            { "name": "LICENSE", "secretRef": { "name": "license", "key": "key" } },
        ],
        "imagePullSecrets": [{ "name": "registry" }],
        "priorityClassName": "proofs",
        "runtimeClassName": "nvidia",
        "schedulerName": "batch",
        "serviceAccountAnnotations": { "eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/prover" },
    });
    let mut cluster = smallest();
    cluster.spec = serde_json::from_value(json!({
        "artifactStore": { "s3": {
            "bucket": "proofs", "prefix": "production", "region": "eu-central-1",
            "endpoint": "https://minio.storage.svc:9000",
            "credentialsRef": { "name": "bucket" }, "caRef": { "name": "store-ca", "key": "store.pem" },
        } },
        "coordinator": {
            "image": "localhost/coordinator:1", "resources": { "cpu": "1", "memory": "2Gi", "ephemeralStorage": "1Gi" },
            "pod": pod,
        },
        "backends": [
            { "name": "risc0", "system": "risc0", "image": "localhost/risc0:1", "args": ["--flag"] },
            { "name": "gnark", "system": "command", "image": "localhost/gnark:1", "imagePullPolicy": "Always", "command": {
                "prove": ["/prove", "{program}", "{input}", "{proof}"], "verify": ["/verify", "{program}", "{proof}"],
                "timeoutSeconds": 60,
            } },
        ],
        "workerGroups": [
            { "name": "gpu", "backend": "risc0", "device": { "gpu": { "count": 2, "product": "NVIDIA H100 80GB HBM3", "minMemory": "40Gi" } },
              "scaling": { "minReplicas": 0, "maxReplicas": 8 }, "capacityType": "Spot", "provider": "gke",
              "resources": { "cpu": "16", "memory": "64Gi", "ephemeralStorage": "100Gi" }, "exchangeSize": "8Gi",
              "cache": { "size": "50Gi", "storageClassName": "fast" }, "prePullImages": true, "pod": pod },
            { "name": "claim", "backend": "risc0", "device": { "gpu": { "resourceClaimTemplateName": "one-gpu", "count": 2 } },
              "resources": { "memory": "32Gi" }, "provider": "karpenter" },
            { "name": "slice", "backend": "risc0", "device": { "gpu": { "migProfile": "1g.10gb" } },
              "resources": { "memory": "16Gi" }, "provider": "aks", "capacityType": "Spot" },
            { "name": "gnark", "backend": "gnark", "device": { "cpu": { "count": 3 } }, "resources": { "cpu": "2", "memory": "2Gi" },
              "provider": "eks" },
        ],
        "allowedNamespaces": { "from": "Selector", "selector": { "matchLabels": { "proofs": "true" } } },
    }))
    .expect("a good specification");
    cluster
}

pub(super) fn surroundings() -> Surroundings {
    Surroundings {
        operator_namespace: "prover-operator".to_owned(),
        operator_account: "operator".to_owned(),
        pull_policy: None,
        pull_secrets: Vec::new(),
        namespaces: vec!["proving".to_owned()],
    }
}

pub(super) fn valid(cluster: &ProverCluster) -> ValidatedCluster {
    validate(cluster).expect("a good ProverCluster")
}

/// Pins of an operator whose own images are these.
pub(super) fn pins(cluster: &ValidatedCluster, image: &str) -> Pins {
    let image = Image(image.to_owned());
    Pins {
        workers: cluster
            .groups
            .iter()
            .map(|group| (group.name.clone(), image.clone()))
            .collect(),
        coordinator: image,
    }
}

pub(super) fn built(cluster: &ProverCluster) -> Resources {
    let cluster = valid(cluster);
    build(
        &cluster,
        &surroundings(),
        &pins(&cluster, "localhost/prover-worker:0.1.0"),
    )
}
