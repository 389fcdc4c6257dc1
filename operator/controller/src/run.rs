//! The operator as a process: waits for its CRDs, fills its caches, takes part in the election, and looks after all
//! objects while it leads.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use kube::Client;
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType};
use kube::{Resource, ResourceExt};
use prometheus::Registry;
use prover_crds::{ProofJob, ProverCluster, reasons};
use prover_runtime::{Clock, Observation};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::{ApiError, call, call_opt};
use crate::caches::{Queues, caches};
use crate::drive::{Driver, Failure};
use crate::leader::{Candidate, Lost};
use crate::metrics::{ControllerName, Metrics};
use crate::{Context, Settings, certificates, proof_job, prover_cluster, scaling};

/// Between two looks whether the CRDs and the caches are there.
const WAIT_PERIOD: Duration = Duration::from_secs(2);
/// Between two looks whether the caches are filled.
const FILL_PERIOD: Duration = Duration::from_millis(100);
/// ProverClusters reconciled at once.
const CLUSTER_CONCURRENCY: u16 = 8;
/// Changes of what a ProverCluster is made of come in bursts: looked at together.
const CLUSTER_DEBOUNCE: Duration = Duration::from_millis(200);
/// Longest note of an event in bytes.
const LONGEST_NOTE: usize = 1_024;
/// Longest wait at the end for what has begun.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(20);

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its metrics can't be registered.
    #[error("the metrics can't be registered: {source}")]
    Metrics {
        /// Why.
        #[from]
        source: prometheus::Error,
    },
    /// Another replica may lead: nothing may be written any more.
    #[error("this replica leads no more, so it ends: {source}")]
    LeadershipLost {
        /// Why.
        #[from]
        source: Lost,
    },
    /// A part that never ends has ended.
    #[error("{part} ended unexpectedly")]
    PartEnded {
        /// Which.
        part: &'static str,
    },
}

impl RunError {
    /// Short name for logs.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            RunError::Metrics { .. } => "metrics",
            RunError::LeadershipLost { .. } => "leadership_lost",
            RunError::PartEnded { .. } => "part_ended",
        }
    }
}

/// Reconciles one ProverCluster.
pub type ClusterReconcile = Arc<
    dyn Fn(Arc<ProverCluster>, Arc<Context>) -> BoxFuture<'static, Result<Action, Failure>> + Send + Sync,
>;

/// What the operator runs with.
pub struct Operator {
    /// Speaks to the API server.
    pub client: Client,
    /// What it was started with.
    pub settings: Settings,
    /// Takes its metrics.
    pub registry: Registry,
    /// Answers its probes.
    pub observation: Observation,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Reconciles ProverClusters.
    pub reconcile: ClusterReconcile,
}

/// Reconciles ProverClusters as the operator does.
#[must_use]
pub fn reconcile_prover_clusters() -> ClusterReconcile {
    Arc::new(|cluster, context| {
        async move {
            prover_cluster::reconcile(cluster, context)
                .await
                .map_err(|error| Failure {
                    category: error.category(),
                    retry: error.retry(),
                    message: error.to_string(),
                })
        }
        .boxed()
    })
}

/// There is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing says where it is.
    #[error("no way to the API server: {source}; run in a pod, or name a kubeconfig in KUBECONFIG")]
    Config {
        /// What was looked for.
        #[from]
        source: kube::config::InferConfigError,
    },
    /// What says it is unusable.
    #[error("no way to the API server: {source}")]
    Client {
        /// What is wrong.
        #[from]
        source: kube::Error,
    },
}

/// A client with the identity of the pod, or of the kubeconfig that KUBECONFIG names.
///
/// # Errors
/// There is neither, or it is unusable.
pub async fn connect() -> Result<Client, ConnectError> {
    Ok(Client::try_from(kube::Config::infer().await?)?)
}

/// Runs until `stop`.
///
/// # Errors
/// The process must end: see [`RunError`].
pub async fn run(operator: Operator, stop: CancellationToken) -> Result<(), RunError> {
    let Operator {
        client,
        settings,
        registry,
        observation,
        clock,
        reconcile,
    } = operator;
    let metrics = Metrics::new(&registry)?;
    metrics.set_leader(false);
    tokio::select! {
        () = wait_for_crds(&client, &observation) => {}
        () = stop.cancelled() => return Ok(()),
    }

    let queues = Queues::default();
    let (caches, filling) = caches(&client, &settings, &queues, &metrics);
    let mut parts = JoinSet::new();
    for fill in filling {
        parts.spawn(fill);
    }
    let context = Arc::new(Context::new(client, settings, caches, metrics, clock));
    let leading = async {
        wait_for_caches(&context, &observation).await;
        observation.set_ready(true);
        lead(Arc::clone(&context), queues, reconcile, &stop).await
    };
    tokio::select! {
        ended = leading => ended,
        _ = parts.join_next() => Err(RunError::PartEnded { part: "a watch" }),
        () = stop.cancelled() => Ok(()),
    }
}

/// Waits until the API server serves both kinds.
async fn wait_for_crds(client: &Client, observation: &Observation) {
    loop {
        match missing_crd(client).await {
            Ok(None) => return,
            Ok(Some(kind)) => {
                observation.set_not_ready(&format!(
                    "the CustomResourceDefinition of {kind} is not installed"
                ));
                tracing::info!(kind, "waiting for a CustomResourceDefinition");
            }
            Err(error) => {
                observation.set_not_ready(&error.to_string());
                tracing::warn!(%error, "waiting for the API server");
            }
        }
        tokio::time::sleep(WAIT_PERIOD).await;
    }
}

async fn missing_crd(client: &Client) -> Result<Option<&'static str>, ApiError> {
    let version = ProverCluster::api_version(&());
    let served = call_opt(
        "list the kinds of proving.rs",
        client.list_api_group_resources(&version),
    )
    .await?;
    let served = served.map(|list| list.resources).unwrap_or_default();
    let kinds = [
        ("ProverCluster", ProverCluster::plural(&())),
        ("ProofJob", ProofJob::plural(&())),
    ];
    let missing = kinds
        .into_iter()
        .find(|(_, plural)| !served.iter().any(|resource| resource.name == **plural));
    Ok(missing.map(|(kind, _)| kind))
}

async fn wait_for_caches(context: &Context, observation: &Observation) {
    while let Some(kind) = context.caches.missing() {
        observation.set_not_ready(&format!("the {kind} of the cluster are not listed yet"));
        tokio::time::sleep(FILL_PERIOD).await;
    }
}

/// Waits for the Lease, then looks after everything until `stop` or until the Lease is lost.
async fn lead(
    context: Arc<Context>,
    queues: Queues,
    reconcile: ClusterReconcile,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    let settings = &context.settings;
    let mut candidate = Candidate::new(
        context.client.clone(),
        &settings.namespace,
        &settings.pod,
        Arc::clone(&context.clock),
    );
    tracing::info!("waiting for the Lease");
    let since = tokio::select! {
        since = candidate.acquire() => since,
        () = stop.cancelled() => return Ok(()),
    };
    tracing::info!("this replica leads");
    context.metrics.set_leader(true);
    let finished = CancellationToken::new();
    let until = finished.clone();
    // In a task of its own: reconciles that keep this one busy must not keep the Lease from being renewed.
    let mut holding = tokio::spawn(async move {
        let lost = candidate.hold(since, &until).await;
        (candidate, lost)
    });
    let ended = tokio::select! {
        // Dropping the reconcilers at this point is what stops all writes at once.
        held = &mut holding => match held {
            Ok((_, lost)) => lost.map_err(RunError::from).and(Err(RunError::PartEnded { part: "the election" })),
            Err(_) => Err(RunError::PartEnded { part: "the election" }),
        },
        ended = reconcile_all(Arc::clone(&context), queues, reconcile, stop.clone()) => ended,
    };
    finished.cancel();
    context.metrics.set_leader(false);
    ended?;
    let (mut candidate, lost) = holding
        .await
        .map_err(|_| RunError::PartEnded { part: "the election" })?;
    lost?;
    if let Err(error) = candidate.release().await {
        tracing::warn!(%error, "the Lease could not be given back and ends by itself");
    }
    Ok(())
}

/// All controllers, until `stop`; then at most [`SHUTDOWN_LIMIT`] for what has begun.
async fn reconcile_all(
    context: Arc<Context>,
    queues: Queues,
    reconcile: ClusterReconcile,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let due = async {
        tokio::select! {
            () = certificates::wake_when_due(&context, &queues.clusters) => {}
            () = stop.cancelled() => {}
        }
    };
    let all = async {
        tokio::join!(
            due,
            reconcile_clusters(Arc::clone(&context), queues.clone(), reconcile, stop.clone()),
            proof_job::run(Arc::clone(&context), queues.clone(), stop.clone()),
            scaling::run(Arc::clone(&context), queues.clone(), stop.clone()),
        );
    };
    let too_late = async {
        stop.cancelled().await;
        tokio::time::sleep(SHUTDOWN_LIMIT).await;
    };
    tokio::select! {
        () = all => {}
        () = too_late => tracing::warn!("some reconciles did not end in time"),
    }
    if stop.is_cancelled() {
        Ok(())
    } else {
        Err(RunError::PartEnded { part: "a controller" })
    }
}

async fn reconcile_clusters(
    context: Arc<Context>,
    queues: Queues,
    reconcile: ClusterReconcile,
    stop: CancellationToken,
) {
    let driver = Driver {
        name: ControllerName::ProverCluster,
        concurrency: CLUSTER_CONCURRENCY,
        debounce: CLUSTER_DEBOUNCE,
        metrics: context.metrics.clone(),
        clock: Arc::clone(&context.clock),
    };
    let store = context.caches.clusters.clone();
    let look = move |cluster| reconcile_cluster(cluster, Arc::clone(&reconcile), Arc::clone(&context));
    driver
        .run(store, queues.clusters, stop.cancelled_owned(), look)
        .await;
}

async fn reconcile_cluster(
    cluster: Arc<DeserializeGuard<ProverCluster>>,
    reconcile: ClusterReconcile,
    context: Arc<Context>,
) -> Result<Action, Failure> {
    let guarded = context.caches.clusters.state();
    let undecodable = guarded.iter().filter(|cluster| cluster.0.is_err()).count();
    context.metrics.set_undecodable("ProverCluster", undecodable);
    match &cluster.0 {
        Ok(cluster) => reconcile(Arc::new(cluster.clone()), context).await,
        Err(invalid) => {
            tell_undecodable(cluster.as_ref(), &invalid.error, &context).await;
            Ok(Action::await_change())
        }
    }
}

/// An object that can't be decoded is left as it is until it changes; its event says what is wrong.
pub(crate) async fn tell_undecodable<K>(object: &K, error: &str, context: &Context)
where
    K: Resource<DynamicType = ()>,
{
    let kind = K::kind(&());
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    tracing::warn!(%kind, namespace, name, error, "this object can't be read");
    let event = Event {
        type_: EventType::Warning,
        reason: reasons::INVALID_SPEC.to_owned(),
        note: Some(note(&format!(
            "this version of the operator can't read the object, so nothing is done about it until it changes: {error}"
        ))),
        action: "Read".to_owned(),
        secondary: None,
    };
    let told = call(
        "create an event",
        context.recorder.publish(&event, &object.object_ref(&())),
    )
    .await;
    if let Err(error) = told {
        tracing::warn!(%error, "an event could not be written");
    }
}

/// At most as much as Kubernetes takes as the note of an event.
pub(crate) fn note(text: &str) -> String {
    let end = (0..=LONGEST_NOTE.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or(0);
    text[..end].to_owned()
}
