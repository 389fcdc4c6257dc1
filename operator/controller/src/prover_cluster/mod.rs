//! Reconciles ProverClusters, in named steps with a file or folder each.
//!
//! 1. `dereference` reads what the ProverCluster refers to and what is there already (from caches: no call).
//! 2. `validate` makes of it something that can be built, or says what is wrong.
//! 3. `build` makes everything that there shall be; it has no client and can't fail.
//! 4. `apply` does what is missing: applies in order, deletes orphans.
//! 5. `status` tells what came of it.
//!
//! Owns everything that a ProverCluster is made of, but for the number of workers (`scaling`) and the certificates
//! (`certificates`).

mod apply;
pub mod build;
mod deletion;
mod dereference;
#[cfg(test)]
mod fixtures;
pub mod revisions;
mod status;
pub mod validate;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::runtime::controller::Action;
use prover_crds::ProverCluster;

pub use apply::{AppliedMemory, ApplyError};
pub use dereference::MOST_NAMESPACES;
pub use status::StatusMemory;

use crate::api::ApiError;
use crate::certificates::CertificateError;
use crate::watches::key_of;
use crate::{Context, Retry, Settings};
use build::{Pins, Surroundings, build};
use dereference::{Dereferenced, dereference};
use status::Findings;
use validate::{ApplyStrategy, Group, Image, ValidatedCluster, ValidationError, validate};

/// Between two looks at a cluster that nobody wakes: what coordinators told goes into the status then.
const LOOK_PERIOD: Duration = Duration::from_secs(10);

/// A ProverCluster could not be reconciled.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// What it is made of could not be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Its certificates could not be looked after.
    #[error("certificates: {0}")]
    Certificates(#[from] CertificateError),
    /// Its status could not be written.
    #[error("status: {0}")]
    Status(#[source] ApiError),
    /// Its finalizer could not be written.
    #[error("finalizer: {0}")]
    Finalizer(#[source] ApiError),
}

impl ReconcileError {
    /// Short name for metrics and events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            ReconcileError::Apply(error) => error.category(),
            ReconcileError::Certificates(error) => error.category(),
            ReconcileError::Status(error) | ReconcileError::Finalizer(error) => error.category(),
        }
    }

    /// When it is worth trying again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            ReconcileError::Apply(error) => error.retry(),
            ReconcileError::Certificates(error) => error.retry(),
            ReconcileError::Status(error) | ReconcileError::Finalizer(error) => error.retry(),
        }
    }
}

/// Makes a ProverCluster what it shall be; see the steps above. Makes no call where nothing changed.
///
/// # Errors
/// A call of the API server failed. A specification that can't be carried out is no error: the status says so.
pub async fn reconcile(cluster: Arc<ProverCluster>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let found = dereference(&cluster, &context);
    if cluster.metadata.deletion_timestamp.is_some() && deletion::proceed(&cluster, &context, &found).await? {
        return Ok(Action::await_change());
    }
    let mut findings = Findings::default();
    let outcome = match validate(&cluster) {
        // On the heap: what all steps together hold is large.
        Ok(valid) => Box::pin(make(&cluster, &context, &found, &valid, &mut findings)).await,
        Err(invalid) => {
            findings.invalid = Some(invalid);
            Ok(())
        }
    };
    if let Err(error) = &outcome {
        findings.failure = Some((error.category(), error.to_string()));
    }
    status::write(&cluster, &context, &found, &findings).await?;
    outcome.map(|()| Action::requeue(LOOK_PERIOD))
}

/// Builds and applies.
async fn make(
    cluster: &ProverCluster,
    context: &Context,
    found: &Dereferenced,
    valid: &ValidatedCluster,
    findings: &mut Findings,
) -> Result<(), ReconcileError> {
    let surroundings = surroundings(&context.settings, found);
    let pins = pins(valid, &surroundings, &context.settings, found);
    let versions = revisions::told_versions(&found.deployments, &found.pods, found.state.as_deref());
    let resources = build(valid, &surroundings, &pins).remembering(&versions);
    findings.current = resources.current.clone();
    findings.strategy = valid.strategy;
    if valid.strategy == ApplyStrategy::Apply {
        if cluster.metadata.deletion_timestamp.is_none() {
            deletion::hold(cluster, context).await?;
        }
        Box::pin(crate::certificates::ensure(context, cluster, &key_of(cluster))).await?;
    }
    findings.differences = apply::apply(context, found, &resources, valid.strategy).await?;
    Ok(())
}

fn surroundings(settings: &Settings, found: &Dereferenced) -> Surroundings {
    Surroundings {
        operator_namespace: settings.namespace.clone(),
        operator_account: settings.service_account.clone(),
        pull_policy: settings.image_pull_policy.clone(),
        pull_secrets: settings.image_pull_secrets.clone(),
        namespaces: found.namespaces.allowed.clone(),
    }
}

/// Which images run, where the ProverCluster leaves it open.
fn pins(
    cluster: &ValidatedCluster,
    surroundings: &Surroundings,
    settings: &Settings,
    found: &Dereferenced,
) -> Pins {
    let coordinator = Image(settings.coordinator_image.clone());
    let worker = Image(settings.worker_image.clone());
    let of_group = |group: &Group| {
        let present = found
            .worker_deployments(&group.name)
            .into_iter()
            .map(|deployment| deployment.annotations());
        build::pin_worker(cluster, group, surroundings, present, &worker)
    };
    let present = found
        .coordinator_deployment()
        .into_iter()
        .map(|deployment| deployment.annotations());
    Pins {
        coordinator: build::pin_coordinator(cluster, surroundings, present, &coordinator),
        workers: cluster
            .groups
            .iter()
            .map(|group| (group.name.clone(), of_group(group)))
            .collect::<BTreeMap<String, Image>>(),
    }
}

/// Why a ProverCluster can't be built.
pub type Invalid = ValidationError;
