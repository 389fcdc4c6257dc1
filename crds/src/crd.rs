//! The CustomResourceDefinitions as they are installed, and the files that hold them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::{ProofJob, ProverCluster};

/// A generated file of the folder `crds`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedFile {
    /// Name within the folder.
    pub name: &'static str,
    /// All of it.
    pub contents: String,
}

/// The CRD of ProofJob.
pub fn proof_job_crd() -> CustomResourceDefinition {
    installable(&ProofJob::crd())
}

/// The CRD of ProverCluster.
pub fn prover_cluster_crd() -> CustomResourceDefinition {
    installable(&ProverCluster::crd())
}

/// The files of the folder `crds`, as they must be.
pub fn generated_files() -> [GeneratedFile; 2] {
    [
        ("provercluster.yaml", prover_cluster_crd()),
        ("proofjob.yaml", proof_job_crd()),
    ]
    .map(|(name, definition)| {
        let yaml = serde_saphyr::to_string(&definition).expect("a CRD has only strings as keys");
        GeneratedFile {
            name,
            contents: format!("# Generated from the Rust types by `make crds`: do not edit.\n{yaml}"),
        }
    })
}

/// The whole schema of a kind, as the API server applies it.
pub(crate) fn schema_of(definition: &CustomResourceDefinition) -> Value {
    let schema = definition.spec.versions[0]
        .schema
        .as_ref()
        .and_then(|schema| schema.open_api_v3_schema.as_ref());
    serde_json::to_value(schema.expect("a derived CRD has a schema")).expect("a schema is JSON")
}

/// Takes out of the derived definition what Kubernetes does not know or what would weaken the rules.
fn installable(derived: &CustomResourceDefinition) -> CustomResourceDefinition {
    let mut definition = serde_json::to_value(derived).expect("a CRD is JSON");
    clean(&mut definition);
    serde_json::from_value(definition).expect("cleaning keeps the form of a CRD")
}

/// `nullable` would make `has(self.field)` true for an explicit null, which would slip through the rules.
/// Unsigned formats are unknown to Kubernetes. A default of null and a title say nothing.
fn clean(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|key, value| match key.as_str() {
                // Fields may have these names too: only keywords hold such values.
                "nullable" => !value.is_boolean(),
                "title" => !value.is_string(),
                "format" => !value.as_str().is_some_and(|format| format.starts_with("uint")),
                "default" => !value.is_null(),
                _ => true,
            });
            object.values_mut().for_each(clean);
        }
        Value::Array(array) => array.iter_mut().for_each(clean),
        _ => {}
    }
}
