//! Manifests of ProverClusters and ProofJobs.

use prover_e2e::Manifest;
use serde_json::{Value, json};

use super::scene::Scene;
use super::store;

/// Name and version of an image, as `make images` makes it.
pub(crate) fn image(name: &str) -> String {
    let registry = std::env::var("IMAGE_REGISTRY").unwrap_or_else(|_| "localhost".to_owned());
    format!("{registry}/{name}:{}", env!("CARGO_PKG_VERSION"))
}

/// A ProverCluster named `prover`.
pub(crate) struct Cluster(Value);

/// Its name.
pub(crate) const CLUSTER: &str = "prover";

impl Cluster {
    /// One without backends and groups yet.
    pub(crate) fn new(scene: &Scene) -> Self {
        Cluster(json!({
            "apiVersion": "proving.rs/v1alpha1",
            "kind": "ProverCluster",
            "metadata": {"name": CLUSTER, "namespace": scene.namespace()},
            "spec": {
                "artifactStore": {"s3": {
                    "bucket": store::BUCKET, "prefix": scene.namespace(), "region": "us-east-1",
                    "endpoint": store::ENDPOINT, "credentialsRef": {"name": "minio"},
                }},
                "coordinator": {"replicas": 1, "resources": {"cpu": "20m", "memory": "256Mi"}},
                "backends": [],
                "workerGroups": [],
            },
        }))
    }

    /// The emulated backend.
    pub(crate) fn emulated(scene: &Scene) -> Self {
        Self::new(scene).emulated_backend()
    }

    /// The emulated backend, beside others.
    pub(crate) fn emulated_backend(self) -> Self {
        self.backend(json!({
            "name": "emulated", "system": "emulated", "image": image("prover-backend-emulated"),
        }))
    }

    /// So many coordinators instead of one, with the CPU that a leader needs beside provers that use all of it.
    pub(crate) fn coordinators(mut self, replicas: u64) -> Self {
        self.0["spec"]["coordinator"]["replicas"] = json!(replicas);
        self.0["spec"]["coordinator"]["resources"]["cpu"] = json!("100m");
        self
    }

    /// Jobs may come from all namespaces of the scene.
    pub(crate) fn of_all_namespaces(self, scene: &Scene) -> Self {
        self.spec(
            "allowedNamespaces",
            json!({"from": "Selector", "selector": {"matchLabels": {"proving.rs/e2e": scene.label()}}}),
        )
    }

    /// The RISC Zero backend.
    pub(crate) fn risc0(scene: &Scene) -> Self {
        Self::new(scene).backend(json!({
            "name": "risc0", "system": "risc0", "image": image("prover-backend-risc0"),
        }))
    }

    /// One more backend.
    pub(crate) fn backend(mut self, backend: Value) -> Self {
        self.0["spec"]["backends"].as_array_mut().unwrap().push(backend);
        self
    }

    /// One more group of small workers on CPUs.
    pub(crate) fn group(self, name: &str, backend: &str, more: Value) -> Self {
        let mut group = json!({
            "name": name, "backend": backend, "device": {"cpu": {}}, "replicas": 1, "drainSeconds": 5,
            "resources": {"cpu": "20m", "memory": "512Mi"}, "exchangeSize": "64Mi",
        });
        let Value::Object(more) = more else {
            panic!("a group's fields are an object, not {more}")
        };
        for (field, value) in more {
            if value.is_null() {
                group.as_object_mut().unwrap().remove(&field);
            } else {
                group[field] = value;
            }
        }
        self.whole_group(group)
    }

    fn whole_group(mut self, group: Value) -> Self {
        self.0["spec"]["workerGroups"].as_array_mut().unwrap().push(group);
        self
    }

    /// Sets a field of `spec`.
    pub(crate) fn spec(mut self, field: &str, value: Value) -> Self {
        self.0["spec"][field] = value;
        self
    }

    /// The manifest.
    pub(crate) fn manifest(&self) -> &Value {
        &self.0
    }
}

/// The manifest of a job, in a namespace, for the scene's cluster.
pub(crate) fn job(scene: &Scene, namespace: &str, manifest: &Manifest) -> Value {
    let mut job: Value = serde_json::from_str(&manifest.text()).unwrap();
    job["metadata"]["namespace"] = json!(namespace);
    job["spec"]["clusterRef"] = if namespace == scene.namespace() {
        json!({"name": CLUSTER})
    } else {
        json!({"name": CLUSTER, "namespace": scene.namespace()})
    };
    job
}
