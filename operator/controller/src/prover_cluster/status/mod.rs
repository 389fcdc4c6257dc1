//! Last step: what came of it, in the status and in events.
//!
//! Owns every field of the status. Writes only what changed: conditions and groups at once, figures at most every
//! ten seconds.

mod conditions;
mod figures;
mod troubles;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::events::{Event, EventType};
use kube::{Resource, ResourceExt};
use prover_crds::names::OPERATOR_MANAGER;
use prover_crds::{ProverCluster, ProverClusterStatus, conditions as words, reasons};
use serde_json::json;

use super::ReconcileError;
use super::apply::Differences;
use super::deletion::{Departure, departure_of};
use super::dereference::Dereferenced;
use super::validate::{ApplyStrategy, ValidationError};
use crate::api::call;
use crate::{ClusterKey, Context};

/// Between two writes of figures alone.
const FIGURES_PERIOD_MS: u64 = 10_000;
/// Longest note of an event in bytes; the API server takes 1 KiB.
const LONGEST_NOTE: usize = 1_000;

/// What the steps before found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Why nothing could be built.
    pub(super) invalid: Option<ValidationError>,
    /// Category and words of what could not be applied.
    pub(super) failure: Option<(&'static str, String)>,
    /// Deployment of each group's current revision.
    pub(super) current: BTreeMap<String, String>,
    /// What might be done.
    pub(super) strategy: ApplyStrategy,
    /// What differs from what there shall be, where nothing might be changed.
    pub(super) differences: Differences,
}

/// When figures were written last.
#[derive(Debug, Default)]
pub struct StatusMemory(Mutex<BTreeMap<ClusterKey, u64>>);

impl StatusMemory {
    fn may_write(&self, key: &ClusterKey, now_ms: u64) -> bool {
        let written = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .copied();
        written.is_none_or(|then| now_ms.saturating_sub(then) >= FIGURES_PERIOD_MS)
    }

    fn written(&self, key: &ClusterKey, now_ms: u64) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key.clone(), now_ms);
    }

    /// A ProverCluster has gone.
    pub(super) fn forget(&self, key: &ClusterKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// What to do about a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Keep,
    Later,
    Write,
}

fn plan(old: &ProverClusterStatus, new: &ProverClusterStatus, may_write_figures: bool) -> Plan {
    if old == new {
        return Plan::Keep;
    }
    if old.conditions != new.conditions
        || old.observed_generation != new.observed_generation
        || figures::essence(old) != figures::essence(new)
        || may_write_figures
    {
        return Plan::Write;
    }
    Plan::Later
}

/// Writes the status where it changed, and tells changes as events.
pub(super) async fn write(
    cluster: &ProverCluster,
    context: &Context,
    found: &Dereferenced,
    findings: &Findings,
) -> Result<(), ReconcileError> {
    let old = cluster.status.clone().unwrap_or_default();
    let now_ms = context.clock.now_milliseconds();
    let departure = cluster
        .metadata
        .deletion_timestamp
        .as_ref()
        .map(|_| departure_of(cluster, context, found));
    let new = compute(cluster, found, findings, departure, moment(now_ms));
    match plan(&old, &new, context.statuses.may_write(&found.key, now_ms)) {
        Plan::Keep | Plan::Later => return Ok(()),
        Plan::Write => {}
    }
    let body = json!({
        "apiVersion": ProverCluster::api_version(&()),
        "kind": ProverCluster::kind(&()),
        "metadata": { "name": cluster.name_any(), "uid": cluster.uid() },
        "status": new,
    });
    // Of the answer nothing is read: it need not be one that this version can decode.
    let api: Api<PartialObjectMeta<ProverCluster>> =
        Api::namespaced(context.client.clone(), &found.key.namespace);
    let parameters = PatchParams::apply(OPERATOR_MANAGER).force();
    let patch = Patch::Apply(body);
    match call(
        "write a status",
        api.patch_status(&cluster.name_any(), &parameters, &patch),
    )
    .await
    {
        Ok(_) => {}
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(ReconcileError::Status(error)),
    }
    context.statuses.written(&found.key, now_ms);
    for event in events(&old, &new) {
        tell(context, cluster, &event).await;
    }
    Ok(())
}

/// The status as it shall be. Pure.
fn compute(
    cluster: &ProverCluster,
    found: &Dereferenced,
    findings: &Findings,
    departure: Option<Departure>,
    now: Time,
) -> ProverClusterStatus {
    let old = cluster.status.clone().unwrap_or_default();
    let troubles = troubles::find(found);
    let mut status = figures::compute(cluster, found, findings, &troubles);
    status.conditions = old.conditions;
    conditions::set(
        &mut status,
        cluster.metadata.generation,
        now,
        &conditions::Facts {
            cluster,
            found,
            findings,
            troubles: &troubles,
            departure,
        },
    );
    status.observed_generation = cluster.metadata.generation;
    status
}

fn moment(now_ms: u64) -> Time {
    // To the second, as Kubernetes keeps times.
    let seconds = i64::try_from(now_ms / 1_000).unwrap_or(i64::MAX);
    Time(Timestamp::from_second(seconds).unwrap_or_default())
}

/// What changed, for people.
fn events(old: &ProverClusterStatus, new: &ProverClusterStatus) -> Vec<(EventType, String, String)> {
    let mut events = Vec::new();
    for condition in &new.conditions {
        let before = words::find(&old.conditions, &condition.type_);
        let changed = before
            .is_none_or(|before| before.status != condition.status || before.reason != condition.reason);
        if changed && is_worth_telling(condition) {
            events.push((
                severity(condition),
                condition.reason.clone(),
                condition.message.clone(),
            ));
        }
    }
    for group in &new.groups {
        let before = old.groups.iter().find(|before| before.name == group.name);
        let Some(reason) = &group.reason else { continue };
        if before.is_none_or(|before| before.reason.as_ref() != Some(reason)) {
            let message = group.message.clone().unwrap_or_default();
            events.push((
                EventType::Warning,
                reason.clone(),
                format!("worker group {}: {message}", group.name),
            ));
        }
    }
    events
}

/// The others only say what `Ready` and the groups say, too.
fn is_worth_telling(condition: &Condition) -> bool {
    [
        words::READY,
        words::DRAINING,
        words::APPLYING,
        words::NAMESPACES_SERVED,
    ]
    .contains(&condition.type_.as_str())
}

fn severity(condition: &Condition) -> EventType {
    let harmless = [
        reasons::READY,
        reasons::PROGRESSING,
        reasons::UNFINISHED_JOBS,
        reasons::PAUSED,
        reasons::DRY_RUN,
    ];
    if harmless.contains(&condition.reason.as_str()) {
        EventType::Normal
    } else {
        EventType::Warning
    }
}

async fn tell(context: &Context, cluster: &ProverCluster, event: &(EventType, String, String)) {
    let (type_, reason, message) = event;
    let event = Event {
        type_: *type_,
        reason: reason.clone(),
        note: Some(short(message)),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    // What an event says is in the status, too: it is not worth a failed reconcile.
    if let Err(error) = call(
        "create an event",
        context.recorder.publish(&event, &cluster.object_ref(&())),
    )
    .await
    {
        tracing::warn!(%error, "an event could not be written");
    }
}

fn short(message: &str) -> String {
    let end = (0..=message.len().min(LONGEST_NOTE))
        .rev()
        .find(|end| message.is_char_boundary(*end));
    message[..end.unwrap_or_default()].to_owned()
}

#[cfg(test)]
mod tests;
