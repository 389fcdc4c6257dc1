//! Fourth step: does what is missing, and nothing else.
//!
//! Owns the order, the field manager, which objects are orphans, and what need not be asked again. What may be done is
//! one [`ApplyStrategy`]; nothing else asks for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, ValidationDirective};
use kube::core::DynamicObject;
use prover_crds::names::{OPERATOR_MANAGER, SCALER_MANAGER};
use serde_json::{Value, json};

use super::build::{APPLIED_HASH_ANNOTATION, Creation, Kind, Manifest, Resources};
use super::dereference::Dereferenced;
use super::revisions::{self, Retirement};
use super::validate::ApplyStrategy;
use crate::api::{ApiError, call};
use crate::{Context, Retry};

/// Differences that a dry run tells one by one.
const MOST_TOLD: usize = 20;
/// Longest time that a cache may lag behind what was written.
const CACHE_LAG_MS: u64 = 5_000;

/// Something could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The API server did not take an object.
    #[error("{object}: {source}")]
    Object {
        /// Kind, namespace and name.
        object: String,
        /// Why.
        source: ApiError,
    },
}

impl ApplyError {
    /// Short name for metrics and events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            ApplyError::Object { source, .. } => source.category(),
        }
    }

    /// When it is worth trying again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            ApplyError::Object { source, .. } => source.retry(),
        }
    }
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ObjectId {
    /// Its kind.
    pub(super) kind: Kind,
    /// Its namespace.
    pub(super) namespace: String,
    /// Its name.
    pub(super) name: String,
}

impl ObjectId {
    fn of(manifest: &Manifest) -> ObjectId {
        ObjectId {
            kind: manifest.kind,
            namespace: manifest.namespace.clone(),
            name: manifest.name.clone(),
        }
    }

    fn label(&self) -> String {
        format!("{} {}/{}", self.kind.as_str(), self.namespace, self.name)
    }
}

/// What is known of an object that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Present {
    /// Hash of what was applied; none where `build` did not make it.
    pub(super) hash: Option<String>,
    /// Changes whenever anything that we may have written does.
    pub(super) version: String,
    /// Its UID.
    pub(super) uid: Option<String>,
    /// Whether it is going.
    pub(super) goes: bool,
}

impl Present {
    /// The generation tells changes of what was wanted from those of the status; kinds without one have no status
    /// that anybody writes.
    pub(super) fn of(metadata: &ObjectMeta) -> Present {
        let annotations = metadata.annotations.as_ref();
        Present {
            hash: annotations
                .and_then(|all| all.get(APPLIED_HASH_ANNOTATION))
                .cloned(),
            version: match metadata.generation {
                Some(generation) => format!("generation {generation}"),
                None => metadata.resource_version.clone().unwrap_or_default(),
            },
            uid: metadata.uid.clone(),
            goes: metadata.deletion_timestamp.is_some(),
        }
    }
}

/// What an object looked like when it was applied last, before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Applied {
    hash: String,
    before: Option<Present>,
    after: Present,
    at_ms: u64,
}

/// What was applied since the operator started, so that it is not asked again. After a start every object is applied
/// once: that costs a call each, and finds what was changed meanwhile.
#[derive(Debug, Default)]
pub struct AppliedMemory(Mutex<BTreeMap<ObjectId, Applied>>);

impl AppliedMemory {
    fn get(&self, id: &ObjectId) -> Option<Applied> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    fn set(&self, id: &ObjectId, applied: Option<Applied>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match applied {
            Some(applied) => all.insert(id.clone(), applied),
            None => all.remove(id),
        };
    }

    /// A ProverCluster has gone, and these objects with it.
    pub(super) fn forget<'a>(&self, ids: impl IntoIterator<Item = &'a ObjectId>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            all.remove(id);
        }
    }
}

/// What is to be done about a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// It is as it shall be.
    Keep,
    /// It is not there.
    Create,
    /// It is there and may differ.
    Change,
}

fn plan(hash: &str, present: Option<&Present>, applied: Option<&Applied>, now_ms: u64) -> Plan {
    if let Some(applied) = applied.filter(|applied| applied.hash == hash) {
        // A cache that has not seen the last write yet shows what was there before.
        let lags = now_ms.saturating_sub(applied.at_ms) < CACHE_LAG_MS && present == applied.before.as_ref();
        if lags || present == Some(&applied.after) {
            return Plan::Keep;
        }
    }
    if present.is_some() {
        Plan::Change
    } else {
        Plan::Create
    }
}

/// What differs from what there shall be, for people. Empty unless nothing may be changed.
pub(super) type Differences = Vec<String>;

/// Applies what differs, in order, then deletes what nothing asks for any more.
pub(super) async fn apply(
    context: &Context,
    found: &Dereferenced,
    resources: &Resources,
    strategy: ApplyStrategy,
) -> Result<Differences, ApplyError> {
    let mut differences = Differences::new();
    for manifest in &resources.manifests {
        let id = ObjectId::of(manifest);
        let present = found.present.get(&id);
        let plan = plan(
            &manifest.hash,
            present,
            context.applied.get(&id).as_ref(),
            context.clock.now_milliseconds(),
        );
        match (plan, strategy) {
            (Plan::Keep, _) => {}
            (_, ApplyStrategy::Apply) => put(context, manifest, present).await?,
            (Plan::Create, ApplyStrategy::Paused) => differences.push(format!("create {}", id.label())),
            (Plan::Change, ApplyStrategy::Paused) => {
                if present.and_then(|present| present.hash.as_ref()) != Some(&manifest.hash) {
                    differences.push(format!("change {}", id.label()));
                }
            }
            (_, ApplyStrategy::DryRun) => differences.extend(try_out(context, manifest, present).await),
        }
    }
    for orphan in orphans(found, resources) {
        match strategy {
            ApplyStrategy::Apply => delete(context, &orphan, found.present.get(&orphan)).await?,
            ApplyStrategy::Paused | ApplyStrategy::DryRun => {
                differences.push(format!("delete {}", orphan.label()));
            }
        }
    }
    if differences.len() > MOST_TOLD {
        let more = differences.len() - MOST_TOLD;
        differences.truncate(MOST_TOLD);
        differences.push(format!("and {more} more"));
    }
    Ok(differences)
}

async fn put(context: &Context, manifest: &Manifest, present: Option<&Present>) -> Result<(), ApplyError> {
    let id = ObjectId::of(manifest);
    if present.is_none() && manifest.creation == Creation::WithoutReplicas {
        create_without_replicas(context, &id, manifest).await?;
    }
    let object = patch(context, &id, OPERATOR_MANAGER, &manifest.body, false).await?;
    if present.is_none() && manifest.creation == Creation::WithoutReplicas {
        // The scaler gives up all but the number of replicas, so that nobody shares what is applied from now on.
        patch(context, &id, SCALER_MANAGER, &only_replicas(manifest), false).await?;
    }
    let applied = Applied {
        hash: manifest.hash.clone(),
        before: present.cloned(),
        after: Present::of(&object.metadata),
        at_ms: context.clock.now_milliseconds(),
    };
    context.applied.set(&id, Some(applied));
    tracing::info!(object = id.label(), created = present.is_none(), "applied");
    Ok(())
}

/// Applied without a number of replicas, a Deployment would begin with one. So it begins as the scaler's, with none.
/// The hash is left out, so that what is not applied to the end is applied again.
async fn create_without_replicas(
    context: &Context,
    id: &ObjectId,
    manifest: &Manifest,
) -> Result<(), ApplyError> {
    let mut body = manifest.body.clone();
    if let Some(annotations) = body["metadata"]["annotations"].as_object_mut() {
        annotations.remove(APPLIED_HASH_ANNOTATION);
    }
    body["spec"]["replicas"] = json!(0);
    patch(context, id, SCALER_MANAGER, &body, false).await.map(|_| ())
}

fn only_replicas(manifest: &Manifest) -> Value {
    json!({
        "apiVersion": manifest.body["apiVersion"],
        "kind": manifest.body["kind"],
        "metadata": { "name": manifest.name, "namespace": manifest.namespace },
        "spec": { "replicas": 0 },
    })
}

/// What the API server would do, in one line.
async fn try_out(context: &Context, manifest: &Manifest, present: Option<&Present>) -> Option<String> {
    let id = ObjectId::of(manifest);
    let changes = present.and_then(|present| present.hash.as_ref()) != Some(&manifest.hash);
    let verb = if present.is_some() { "change" } else { "create" };
    match patch(context, &id, OPERATOR_MANAGER, &manifest.body, true).await {
        Ok(_) => changes.then(|| format!("{verb} {}", id.label())),
        Err(ApplyError::Object { source, .. }) => Some(format!("{verb} {}, but {source}", id.label())),
    }
}

async fn patch(
    context: &Context,
    id: &ObjectId,
    manager: &str,
    body: &Value,
    dry_run: bool,
) -> Result<DynamicObject, ApplyError> {
    let parameters = PatchParams {
        dry_run,
        force: true,
        field_manager: Some(manager.to_owned()),
        field_validation: Some(ValidationDirective::Strict),
    };
    let api = api(context, id);
    let answer = call(
        "apply an object",
        api.patch(&id.name, &parameters, &Patch::Apply(body)),
    )
    .await;
    answer.map_err(|source| ApplyError::Object {
        object: id.label(),
        source,
    })
}

/// Objects that were made once and that nothing asks for any more. Workers only go once they have nothing to do.
fn orphans(found: &Dereferenced, resources: &Resources) -> Vec<ObjectId> {
    let wanted: BTreeSet<ObjectId> = resources.manifests.iter().map(ObjectId::of).collect();
    let orphan = |id: &&ObjectId| !wanted.contains(id);
    let made = found
        .present
        .iter()
        .filter(|(_, present)| present.hash.is_some() && !present.goes);
    let gone: Vec<&ObjectId> = made.map(|(id, _)| id).filter(orphan).collect();
    let may_go = |id: &&ObjectId| id.kind != Kind::Deployment || may_be_deleted(found, resources, &id.name);
    // Against the order of applying, so that nothing loses what it still needs.
    gone.into_iter().filter(may_go).rev().cloned().collect()
}

fn may_be_deleted(found: &Dereferenced, resources: &Resources, name: &str) -> bool {
    let revisions = revisions::revisions(
        &found.deployments,
        &found.pods,
        found.state.as_deref(),
        &resources.current,
    );
    let old = revisions.iter().find(|revision| revision.deployment == name);
    old.is_none_or(|revision| revision.retirement == Some(Retirement::Delete))
}

/// Deletes an object; that it is gone already is as good.
pub(super) async fn delete(
    context: &Context,
    id: &ObjectId,
    present: Option<&Present>,
) -> Result<(), ApplyError> {
    let mut parameters = DeleteParams::background();
    // Never one that somebody else made under the same name meanwhile.
    parameters.preconditions = present
        .and_then(|present| present.uid.clone())
        .map(|uid| Preconditions {
            uid: Some(uid),
            resource_version: None,
        });
    let deleted = call("delete an object", api(context, id).delete(&id.name, &parameters)).await;
    context.applied.set(id, None);
    match deleted {
        Ok(_) => {
            tracing::info!(object = id.label(), "deleted");
            Ok(())
        }
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(source) => Err(ApplyError::Object {
            object: id.label(),
            source,
        }),
    }
}

fn api(context: &Context, id: &ObjectId) -> Api<DynamicObject> {
    Api::namespaced_with(context.client.clone(), &id.namespace, &id.kind.api_resource())
}

#[cfg(test)]
mod tests;
