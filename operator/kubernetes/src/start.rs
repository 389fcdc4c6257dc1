//! The coordinator of a cluster from its start to its end: what waits for what, and when it is ready.
//!
//! Owns the order. Does not own the command line (the binary) nor any of the parts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use prover_artifacts::{ArtifactStore, StoreError, StoreUrl};
use prover_coordinator::{
    ClusterSources, CoordinatorConfig, CoordinatorError, CoordinatorHandle, Milliseconds, Secret,
    WorkerAuthentication, WorkerControl,
};
use prover_runtime::prometheus::{self, Registry};
use prover_runtime::{Clock, ListenerError, Observation, SystemClock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cluster::RulesWatch;
use crate::events::Teller;
use crate::identity::{Authenticator, IdentityConfig};
use crate::jobs::watch::ClusterName;
use crate::jobs::{Jobs, Parts};
use crate::metrics::Metrics;
use crate::pods::{self, PodDirectory};
use crate::sources::KubernetesSources;
use crate::tls::{Certificate, TlsError};

/// First wait before the store or the address is tried again; it doubles.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Longest wait before the store or the address is tried again.
const LONGEST_RETRY: Duration = Duration::from_secs(15);

/// 2026-01-01T00:00:00Z in seconds since 1970.
const BEGIN_OF_EPOCHS: u64 = 1_767_225_600;

/// Silence after which the attempts of a worker run elsewhere: a node that has vanished proves nothing else, and what
/// comes back is taken back.
const SILENCE_LIMIT: Milliseconds = Milliseconds(9_000);

/// What a coordinator is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of the ProverCluster and of this pod.
    pub namespace: String,
    /// Name of the ProverCluster.
    pub cluster: String,
    /// Where workers and the operator connect.
    pub listen: SocketAddr,
    /// URL of the artifact store; its credentials come from the environment.
    pub store: String,
    /// Who may sign in, and how connections are encrypted.
    pub access: Access,
    /// Where metrics and probes are served.
    pub metrics_address: SocketAddr,
    /// Name of this pod, which events name.
    pub pod: Option<String>,
}

/// Who may sign in, and how connections are encrypted.
#[derive(Clone, Debug)]
pub enum Access {
    /// Projected tokens of ServiceAccounts, over TLS.
    ServiceAccounts {
        /// Folder of `tls.crt` and `tls.key`.
        tls_directory: PathBuf,
        /// Namespace of the operator's ServiceAccount.
        operator_namespace: String,
        /// Name of the operator's ServiceAccount.
        operator_account: String,
        /// Whether a worker must call from an address of its pod.
        check_address: bool,
    },
    /// One secret without encryption, for tests in one process.
    Secret(Secret),
}

/// Why a coordinator does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store's URL is malformed.
    #[error("--store: {source}")]
    Store {
        /// What is wrong with it.
        source: StoreError,
    },
    /// Metrics and probes can't be served.
    #[error(transparent)]
    Observation(#[from] ListenerError),
    /// The certificate can't be served.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Metrics are registered twice, a fault of ours.
    #[error("metrics can't be registered: {source}")]
    Metrics {
        /// What the registry said.
        #[from]
        source: prometheus::Error,
    },
    /// The coordinator itself does not start.
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
}

impl StartError {
    /// Short name for metrics and logs.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            StartError::Store { .. } => "store",
            StartError::Observation(error) => error.category(),
            StartError::Tls(error) => error.category(),
            StartError::Metrics { .. } => "metrics",
            StartError::Coordinator(error) => error.category(),
        }
    }
}

/// There is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a pod's ServiceAccount nor a kubeconfig.
    #[error("no way to the API server: {source}; run in a pod, or name a kubeconfig in KUBECONFIG")]
    Configuration {
        /// What was looked for.
        #[from]
        source: kube::config::InferConfigError,
    },
    /// What was found can't be used.
    #[error("no way to the API server: {source}")]
    Client {
        /// What is wrong with it.
        source: Box<kube::Error>,
    },
}

/// The API server of this pod's cluster, or of the kubeconfig.
///
/// # Errors
/// Neither is there, or it can't be used.
pub async fn connect() -> Result<Client, ConnectError> {
    let config = kube::Config::infer().await?;
    Client::try_from(config).map_err(|source| ConnectError::Client {
        source: Box::new(source),
    })
}

/// Where a running coordinator listens, for those that start one in their own process.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Workers and the operator.
    pub plane: SocketAddr,
    /// Metrics and probes.
    pub observation: SocketAddr,
}

/// Runs the coordinator of a cluster until it is stopped. `started` learns where it listens, once it does.
///
/// # Errors
/// It can't start for a reason that does not pass by itself. A store that is away is waited for.
pub async fn run(
    settings: Settings,
    client: Client,
    stop: CancellationToken,
    started: Option<watch::Sender<Option<Addresses>>>,
) -> Result<(), StartError> {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry)?;
    let observation = Observation::new(registry.clone());
    let observing = observation.serve(settings.metrics_address).await?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let store_uri = store_uri(&settings.store)?;

    // The API server answers while the store is waited for.
    let mut rules = RulesWatch::start(&client, &settings.namespace, &settings.cluster, &metrics, &stop);
    let directory = PodDirectory::default();
    let opened = open_store(&settings.store, &observation, &stop).await?;
    let Some(store) = opened else {
        observing.stop().await;
        return Ok(());
    };
    let config = coordinator_config(&settings, &client, &directory, &clock, &registry, &stop)?;
    let source_bytes = (config.program_bytes, config.input_bytes);
    if !first_rules(&mut rules, &observation, &stop).await {
        observing.stop().await;
        return Ok(());
    }
    let coordinator = prover_coordinator::start(config, Arc::clone(&store)).await?;
    let plane = coordinator.address();
    let control = coordinator.worker_control();
    if let Some(started) = started {
        started.send_replace(Some(Addresses {
            plane,
            observation: observing.address(),
        }));
    }
    tokio::spawn(tell_groups(rules.clone(), control.clone(), stop.clone()));
    if let Access::ServiceAccounts { .. } = settings.access {
        let (client, namespace, cluster) = (
            client.clone(),
            settings.namespace.clone(),
            settings.cluster.clone(),
        );
        let stop = stop.clone();
        tokio::spawn(async move {
            pods::run(client, &namespace, &cluster, directory, control, stop).await;
        });
    }
    let coordinator = Arc::new(coordinator);
    let parts = Parts {
        teller: Teller::start(
            client.clone(),
            settings.pod.clone(),
            metrics.clone(),
            stop.clone(),
        ),
        cluster: ClusterName {
            namespace: settings.namespace.as_str().into(),
            name: settings.cluster.as_str().into(),
        },
        coordinator: Arc::clone(&coordinator),
        sources: sources(&client, &rules, &clock),
        client,
        store,
        store_uri,
        source_bytes,
        rules,
        clock,
        metrics,
    };
    let (jobs, synced) = Jobs::new(parts);
    let showing = tokio::spawn(show_readiness(synced, observation.clone()));
    jobs.run(stop).await;
    observation.set_not_ready("it ends");
    showing.abort();
    end(coordinator).await;
    observing.stop().await;
    Ok(())
}

async fn end(coordinator: Arc<CoordinatorHandle>) {
    match Arc::try_unwrap(coordinator) {
        Ok(coordinator) => coordinator.shutdown().await,
        // An admission that is still on its way ends with the process.
        Err(_) => tracing::warn!("the coordinator is still in use at its end"),
    }
}

/// Ready means caught up: the store was probed, the listener is up, and all watches have told what there is.
async fn show_readiness(mut synced: watch::Receiver<bool>, observation: Observation) {
    observation.set_not_ready("the ProverCluster, its namespaces and their ProofJobs are being listed");
    loop {
        if *synced.borrow_and_update() {
            observation.set_ready(true);
        } else {
            observation
                .set_not_ready("the ProverCluster, its namespaces and their ProofJobs are being listed");
        }
        if synced.changed().await.is_err() {
            return;
        }
    }
}

/// What makes a key of the store a URI.
fn store_uri(url: &str) -> Result<String, StartError> {
    let parsed: StoreUrl = url.parse().map_err(|source| StartError::Store { source })?;
    Ok(match parsed {
        StoreUrl::Folder(path) => format!("file://{}/", path.display()),
        StoreUrl::S3(location) => format!("s3://{}/{}", location.bucket, location.prefix.as_str()),
    })
}

/// Opens the store and waits until it can be used; none where it was stopped first.
async fn open_store(
    url: &str,
    observation: &Observation,
    stop: &CancellationToken,
) -> Result<Option<Arc<dyn ArtifactStore>>, StartError> {
    let mut wait = FIRST_RETRY;
    loop {
        let probed = async {
            let store = prover_artifacts::open(url).await?;
            store.probe().await.map(|_| store)
        };
        let error = tokio::select! {
            () = stop.cancelled() => return Ok(None),
            probed = probed => match probed {
                Ok(store) => return Ok(Some(store)),
                Err(error) => error,
            },
        };
        tracing::warn!(category = error.category(), %error, ?wait, "the artifact store can't be used yet");
        observation.set_not_ready(&format!("the artifact store can't be used yet: {error}"));
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(wait) => {}
        }
        wait = (wait * 2).min(LONGEST_RETRY);
    }
}

/// Waits for the ProverCluster; false where it was stopped first.
async fn first_rules(rules: &mut RulesWatch, observation: &Observation, stop: &CancellationToken) -> bool {
    observation.set_not_ready("the ProverCluster can't be read from the API server yet");
    while rules.latest().is_none() {
        tokio::select! {
            () = stop.cancelled() => return false,
            () = rules.changed() => {}
        }
    }
    true
}

fn coordinator_config(
    settings: &Settings,
    client: &Client,
    directory: &PodDirectory,
    clock: &Arc<dyn Clock>,
    registry: &Registry,
    stop: &CancellationToken,
) -> Result<CoordinatorConfig, StartError> {
    let (authentication, tls) = match &settings.access {
        Access::Secret(secret) => (WorkerAuthentication::Token(secret.clone()), None),
        Access::ServiceAccounts {
            tls_directory,
            operator_namespace,
            operator_account,
            check_address,
        } => {
            let identity = IdentityConfig {
                namespace: settings.namespace.clone(),
                cluster: settings.cluster.clone(),
                operator_namespace: operator_namespace.clone(),
                operator_account: operator_account.clone(),
                check_address: *check_address,
            };
            let authenticator = Arc::new(Authenticator::new(
                client.clone(),
                &identity,
                directory.clone(),
                Arc::clone(clock),
                registry,
            )?);
            let warm = Arc::clone(&authenticator);
            tokio::spawn(async move { warm.warm_up().await });
            let certificate = Certificate::load(tls_directory, registry)?;
            let tls = certificate.server_config()?;
            tokio::spawn(certificate.follow(stop.clone()));
            (WorkerAuthentication::Custom(authenticator), Some(tls))
        }
    };
    let mut config = CoordinatorConfig::new(settings.listen, authentication);
    config.tls = tls;
    config.epoch = epoch(clock.now_milliseconds());
    config.registry = registry.clone();
    config.clock = Arc::clone(clock);
    config.limits.lease = SILENCE_LIMIT;
    Ok(config)
}

/// An epoch that is higher than that of every earlier coordinator of the cluster, as there is only one at a time and
/// none ends in the second in which it began: the seconds since 2026.
fn epoch(now_milliseconds: u64) -> u64 {
    (now_milliseconds / 1_000).saturating_sub(BEGIN_OF_EPOCHS).max(1)
}

fn sources(client: &Client, rules: &RulesWatch, clock: &Arc<dyn Clock>) -> Arc<dyn ClusterSources> {
    let rules = rules.clone();
    let allowed = move || {
        let known = rules.clone().latest();
        let cluster = known.as_ref().and_then(|known| known.cluster.as_ref());
        cluster.map_or_else(Vec::new, |cluster| cluster.limits.allowed_http_hosts.clone())
    };
    Arc::new(KubernetesSources::new(
        client.clone(),
        Arc::new(allowed),
        Arc::clone(clock),
    ))
}

/// Tells the coordinator which groups there are, as the ProverCluster changes.
async fn tell_groups(mut rules: RulesWatch, control: WorkerControl, stop: CancellationToken) {
    let mut told = None;
    loop {
        let known = rules.latest();
        let groups = known
            .and_then(|known| Some(known.cluster.as_ref()?.groups.clone()))
            .unwrap_or_default();
        if told.as_ref() != Some(&groups) {
            control.set_groups(groups.clone()).await;
            told = Some(groups);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = rules.changed() => {}
        }
    }
}
