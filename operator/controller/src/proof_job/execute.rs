//! Carries out what was planned for a ProofJob.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType};
use kube::{Api, Resource, ResourceExt};
use prover_crds::{ProofJob, names, reasons};
use serde_json::{Value, json};

use super::gitops::Tracker;
use super::object::JobObject;
use super::plan::JobPlan;
use crate::Context;
use crate::api::{ApiError, call, call_opt};
use crate::run::note;

/// Most jobs that are remembered as told; beyond it some may be told again.
const MOST_TOLD: usize = 100_000;

/// Jobs that were told that Git keeps them, by uid: an event each is enough.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<BTreeSet<String>>);

impl Told {
    /// Whether this is the first time.
    fn is_first(&self, uid: String) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= MOST_TOLD {
            told.clear();
        }
        told.insert(uid)
    }
}

/// Carries out a plan. What is gone meanwhile needs nothing any more; a change meanwhile wakes the job again.
pub(super) async fn execute(
    context: &Context,
    job: &JobObject,
    plan: &JobPlan,
    told: &Told,
) -> Result<Action, ApiError> {
    let (write, outcome) = match plan {
        JobPlan::Idle { .. } => return Ok(Action::await_change()),
        JobPlan::HeldByGitOps(tracker) => {
            if told.is_first(job.uid().unwrap_or_default()) {
                tell_held(context, job, *tracker).await;
            }
            return Ok(Action::await_change());
        }
        JobPlan::AddFinalizer => ("add_finalizer", add_finalizer(context, job).await),
        JobPlan::RemoveFinalizer(_) => ("remove_finalizer", remove_finalizer(context, job).await),
        JobPlan::Refuse(condition) => ("refuse", refuse(context, job, condition).await),
        JobPlan::LeaveToCoordinator => (
            "leave_to_coordinator",
            write_conditions(context, job, &json!([])).await,
        ),
        JobPlan::Delete => ("delete", delete(context, job).await),
    };
    tracing::debug!(
        namespace = job.namespace(),
        name = job.name_any(),
        ?plan,
        "ProofJob"
    );
    match outcome {
        Ok(()) => {
            context.metrics.job_written(write);
            Ok(Action::await_change())
        }
        Err(error) if error.is_not_found() || error.is_namespace_terminating() => Ok(Action::await_change()),
        // The cache was behind: its next event wakes the job.
        Err(error) if error.is_conflict() && !matches!(plan, JobPlan::Refuse(_)) => {
            Ok(Action::requeue(CONFLICT_DELAY))
        }
        Err(error) => Err(error),
    }
}

/// Until the cache has caught up.
const CONFLICT_DELAY: std::time::Duration = std::time::Duration::from_secs(1);

fn api(context: &Context, job: &JobObject) -> Api<PartialObjectMeta<ProofJob>> {
    Api::namespaced(
        context.client.clone(),
        job.metadata.namespace.as_deref().unwrap_or_default(),
    )
}

/// Name, uid and what shall be applied: with the uid, an object that went meanwhile is not made again.
fn applied(job: &JobObject, metadata: &Value, rest: &Value) -> Value {
    let mut object = json!({
        "apiVersion": ProofJob::api_version(&()),
        "kind": ProofJob::kind(&()),
        "metadata": { "name": job.name_any(), "uid": job.uid() },
    });
    for (target, source) in [("/metadata", metadata), ("", rest)] {
        if let (Some(Value::Object(target)), Value::Object(source)) = (object.pointer_mut(target), source) {
            target.extend(source.clone());
        }
    }
    object
}

async fn add_finalizer(context: &Context, job: &JobObject) -> Result<(), ApiError> {
    let patch = applied(job, &json!({ "finalizers": [names::JOB_FINALIZER] }), &json!({}));
    let parameters = PatchParams::apply(names::OPERATOR_MANAGER).force();
    let api = api(context, job);
    call(
        "add the finalizer of a ProofJob",
        api.patch_metadata(&job.name_any(), &parameters, &Patch::Apply(patch)),
    )
    .await
    .map(|_| ())
}

/// Not by server-side apply, which would leave a finalizer that somebody else applies too.
async fn remove_finalizer(context: &Context, job: &JobObject) -> Result<(), ApiError> {
    let others = job
        .finalizers()
        .iter()
        .filter(|finalizer| *finalizer != names::JOB_FINALIZER);
    let patch = json!({ "metadata": {
        "uid": job.uid(),
        "resourceVersion": job.resource_version(),
        "finalizers": others.collect::<Vec<_>>(),
    } });
    let parameters = PatchParams {
        field_manager: Some(names::OPERATOR_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let api = api(context, job);
    call(
        "remove the finalizer of a ProofJob",
        api.patch_metadata(&job.name_any(), &parameters, &Patch::Merge(patch)),
    )
    .await
    .map(|_| ())
}

async fn refuse(context: &Context, job: &JobObject, condition: &Condition) -> Result<(), ApiError> {
    write_conditions(context, job, &json!([condition])).await?;
    tell(
        context,
        job,
        EventType::Warning,
        &condition.reason,
        "Accept",
        &condition.message,
    )
    .await;
    Ok(())
}

/// Applies these conditions as ours; those that we applied before and are not among them go, unless the coordinator
/// applies them too.
async fn write_conditions(context: &Context, job: &JobObject, conditions: &Value) -> Result<(), ApiError> {
    let patch = applied(
        job,
        &json!({}),
        &json!({ "status": { "conditions": conditions } }),
    );
    let parameters = PatchParams::apply(names::OPERATOR_MANAGER).force();
    let api: Api<ProofJob> = Api::namespaced(context.client.clone(), &job.namespace().unwrap_or_default());
    let name = job.name_any();
    let answer = async {
        api.patch_status(&name, &parameters, &Patch::Apply(patch))
            .await
            .map(|_| ())
    };
    call("write the status of a ProofJob", answer).await
}

async fn delete(context: &Context, job: &JobObject) -> Result<(), ApiError> {
    // Whoever changed the job meanwhile, for instance its time to live, is listened to first.
    let preconditions = Preconditions {
        uid: job.uid(),
        resource_version: job.resource_version(),
    };
    let parameters = DeleteParams {
        preconditions: Some(preconditions),
        ..DeleteParams::background()
    };
    let api = api(context, job);
    call_opt("delete a ProofJob", api.delete(&job.name_any(), &parameters))
        .await
        .map(|_| ())
}

async fn tell_held(context: &Context, job: &JobObject, tracker: Tracker) {
    let message = format!(
        "the time to live of this job is over, but {} keeps it and would create it again, so it stays; delete it in \
         Git, or annotate it with {}=true",
        tracker.as_str(),
        names::TTL_DESPITE_GITOPS_ANNOTATION
    );
    tell(
        context,
        job,
        EventType::Normal,
        reasons::TTL_HELD_BY_GITOPS,
        "Delete",
        &message,
    )
    .await;
}

async fn tell(
    context: &Context,
    job: &JobObject,
    type_: EventType,
    reason: &str,
    action: &str,
    message: &str,
) {
    let event = Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note(message)),
        action: action.to_owned(),
        secondary: None,
    };
    let told = call(
        "create an event",
        context.recorder.publish(&event, &job.object_ref(&())),
    )
    .await;
    if let Err(error) = told {
        tracing::warn!(%error, "an event could not be written");
    }
}
