//! ProofJobs as the operator sees them: without program, input and most of the status, so that ten thousand of them
//! take little memory and no odd value in a field that is not read can break the watch.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ManagedFieldsEntry, Time};
use kube::Resource;
use kube::core::{DeserializeGuard, ObjectMeta};
use prover_crds::{ClusterReference, MANAGED_BY_US, ProofJob, conditions, names};
use serde::{Deserialize, Serialize};

use super::gitops;

/// What the operator reads of a ProofJob.
#[derive(Resource, Serialize, Deserialize, Clone, Debug, Default)]
#[resource(inherit = ProofJob)]
pub struct JobObject {
    /// Name, namespace, finalizers, time of deletion; of labels and annotations those that are read.
    pub metadata: ObjectMeta,
    /// What is wanted.
    #[serde(default)]
    pub spec: JobSpec,
    /// What became of it.
    #[serde(default)]
    pub status: JobStatus,
    /// The operator owns the condition `Accepted`. Set by [`trim`], which drops what it is read from.
    #[serde(skip)]
    pub we_wrote_status: bool,
}

/// What the operator reads of a ProofJob's specification.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct JobSpec {
    /// The ProverCluster that proves it.
    #[serde(default)]
    pub cluster_ref: ClusterReference,
    /// Seconds after its end until the object is deleted.
    #[serde(default)]
    pub ttl_seconds_after_finished: Option<i64>,
    /// Controller that looks after this object.
    #[serde(default)]
    pub managed_by: Option<String>,
}

/// What the operator reads of a ProofJob's status.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    /// Its conditions.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// When it ended.
    #[serde(default)]
    pub completion_time: Option<Time>,
}

impl JobObject {
    /// Whether this operator looks after the object. Nothing is ever written to one that another looks after.
    #[must_use]
    pub fn is_managed_by_us(&self) -> bool {
        self.spec
            .managed_by
            .as_deref()
            .is_none_or(|manager| manager == MANAGED_BY_US)
    }
}

/// Keeps of labels, annotations and conditions only what is read.
pub fn trim(job: &mut DeserializeGuard<JobObject>) {
    let metadata = match &mut job.0 {
        Ok(job) => {
            for condition in &mut job.status.conditions {
                condition.message = String::new();
            }
            job.we_wrote_status = job.metadata.managed_fields.iter().flatten().any(wrote_accepted);
            &mut job.metadata
        }
        Err(invalid) => &mut invalid.metadata,
    };
    metadata.managed_fields = None;
    metadata.owner_references = None;
    metadata.generate_name = None;
    keep(&mut metadata.annotations, |name| {
        name == names::TTL_DESPITE_GITOPS_ANNOTATION || gitops::ANNOTATIONS.contains(&name)
    });
    keep(&mut metadata.labels, |name| gitops::LABELS.contains(&name));
}

/// Whether this entry says that the operator owns the condition `Accepted`.
fn wrote_accepted(entry: &ManagedFieldsEntry) -> bool {
    let condition = format!(r#"k:{{"type":"{}"}}"#, conditions::ACCEPTED);
    let fields = entry
        .fields_v1
        .as_ref()
        .and_then(|fields| fields.0.pointer("/f:status/f:conditions"));
    entry.manager.as_deref() == Some(names::OPERATOR_MANAGER)
        && entry.subresource.as_deref() == Some("status")
        && fields.is_some_and(|fields| fields.get(&condition).is_some())
}

fn keep(entries: &mut Option<BTreeMap<String, String>>, wanted: impl Fn(&str) -> bool) {
    if let Some(all) = entries {
        all.retain(|name, _| wanted(name));
        if all.is_empty() {
            *entries = None;
        }
    }
}
