//! ProverClusters and an operator for tests.

use std::sync::Arc;

use kube::Client;
use prover_controller::{Caches, Context, Metrics, Settings};
use prover_crds::ProverCluster;
use prover_runtime::ManualClock;
use prover_runtime::prometheus::Registry;
use serde_json::{Value, json};

/// 2026, so that certificates that are made are good for years.
pub(crate) const NOW_MS: u64 = 1_790_000_000_000;

pub(crate) fn settings() -> Settings {
    Settings {
        namespace: "prover-operator".to_owned(),
        service_account: "operator".to_owned(),
        pod: "operator-0".to_owned(),
        coordinator_image: "localhost/prover-operator:0.1.0".to_owned(),
        worker_image: "localhost/prover-worker:0.1.0".to_owned(),
        image_pull_policy: None,
        image_pull_secrets: Vec::new(),
        watch_namespaces: Vec::new(),
    }
}

/// A cluster with two groups of workers on processor cores.
pub(crate) fn manifest(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "proving.rs/v1alpha1",
        "kind": "ProverCluster",
        "metadata": { "name": name, "namespace": namespace },
        "spec": {
            "artifactStore": { "s3": {
                "bucket": "proofs", "endpoint": "http://minio.storage.svc:9000", "credentialsRef": { "name": "bucket" },
            } },
            "backends": [{ "name": "risc0", "system": "risc0", "image": "localhost/prover-backend-risc0:0.1.0" }],
            "workerGroups": [group("one"), group("two")],
        },
    })
}

pub(crate) fn group(name: &str) -> Value {
    json!({ "name": name, "backend": "risc0", "device": { "cpu": {} }, "resources": { "cpu": "2", "memory": "4Gi" } })
}

/// As the API server would give it back.
pub(crate) fn read(manifest: Value) -> ProverCluster {
    serde_json::from_value(manifest).expect("a good ProverCluster")
}

/// A cluster as the API server has it.
pub(crate) fn stored(name: &str) -> Value {
    let mut cluster = manifest("proving", name);
    cluster["metadata"]["uid"] = json!(format!("uid-of-{name}"));
    cluster["metadata"]["generation"] = json!(1);
    cluster
}

pub(crate) fn context(
    client: Client,
    settings: Settings,
    caches: Caches,
    clock: Arc<ManualClock>,
) -> Context {
    let metrics = Metrics::new(&Registry::new()).expect("a registry of its own");
    Context::new(client, settings, caches, metrics, clock)
}
