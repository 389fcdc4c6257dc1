//! The coordinator of a cluster from its start to its end: what waits for what, and when it is ready.
//!
//! Owns the order. Does not own the command line (the binary) nor any of the parts.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use prover_artifacts::{ArtifactStore, Prefix, StoreError, StoreOptions, StoreUrl};
use prover_coordinator::{
    ClusterSources, CoordinatorConfig, CoordinatorError, CoordinatorHandle, Durability, LogConfig,
    Milliseconds, Role, Secret, TakeOverError, WorkerAuthentication, WorkerControl,
};
use prover_runtime::prometheus::{self, Registry};
use prover_runtime::{Clock, ListenerError, Observation, SystemClock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cluster::RulesWatch;
use crate::election::{Candidate, Confirmed, Election, Ended, Lead, LeaseClient, OwnPod};
use crate::events::{self, Teller};
use crate::identity::{Authenticator, IdentityConfig};
use crate::jobs::watch::ClusterName;
use crate::jobs::{Jobs, Parts};
use crate::metrics::Metrics;
use crate::pods::{self, PodDirectory};
use crate::sources::KubernetesSources;
use crate::tls::{Certificate, TlsError};
use crate::writer::JobName;

/// First wait before the store or the address is tried again; it doubles.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Longest wait before the store or the address is tried again.
const LONGEST_RETRY: Duration = Duration::from_secs(15);

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
    /// Name of this pod: unique among the replicas, and what the Lease and events name.
    pub pod: String,
    /// Address of this pod; that which it listens on where absent.
    pub pod_address: Option<IpAddr>,
    /// UID of the ProverCluster, below which its log lies.
    pub cluster_uid: String,
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
    /// Another replica leads. What this one knows is old, so its process ends, and the next one follows.
    #[error("another replica leads")]
    Fenced,
    /// It was its turn, and it can't lead.
    #[error("this replica can't lead: {source}")]
    TakeOver {
        /// Why.
        #[from]
        source: TakeOverError,
    },
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
            StartError::Fenced => "fenced",
            StartError::TakeOver { source } => source.category(),
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

/// Runs a replica of the coordinator of a cluster until it is stopped: it follows, and leads when its turn comes. `started`
/// learns where it listens, once it does.
///
/// # Errors
/// It can't start for a reason that does not pass by itself, or another replica took the lead from it: its process should
/// end then. A store that is away is waited for.
pub async fn run(
    settings: Settings,
    client: Client,
    stop: CancellationToken,
    started: Option<watch::Sender<Option<Addresses>>>,
) -> Result<(), StartError> {
    // Whatever was begun ends with it.
    let stop = stop.child_token();
    let _ends = stop.clone().drop_guard();
    match Box::pin(serve(&settings, client, stop, started.as_ref())).await? {
        Ended::Stopped => Ok(()),
        Ended::Fenced => Err(StartError::Fenced),
        Ended::Failed(source) => Err(source.into()),
    }
}

/// From following to the end of the lead.
async fn serve(
    settings: &Settings,
    client: Client,
    stop: CancellationToken,
    started: Option<&watch::Sender<Option<Addresses>>>,
) -> Result<Ended, StartError> {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry)?;
    let observation = Observation::new(registry.clone());
    let observing = observation.serve(settings.metrics_address).await?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let pod = OwnPod::start(
        &client,
        &settings.namespace,
        &settings.pod,
        metrics.clone(),
        stop.clone(),
    );

    // The API server answers while the store is waited for.
    let mut rules = RulesWatch::start(&client, &settings.namespace, &settings.cluster, &metrics, &stop);
    let directory = PodDirectory::default();
    let opened = open_stores(&settings.store, &observation, &pod, &stop).await?;
    let Some(stores) = opened else {
        observing.stop().await;
        return Ok(Ended::Stopped);
    };
    let mut config = coordinator_config(settings, &client, &directory, &clock, &registry, &stop)?;
    config.durability = durability(settings, &stores)?;
    let source_bytes = (config.program_bytes, config.input_bytes);
    if !first_rules(&mut rules, &observation, &stop).await {
        observing.stop().await;
        return Ok(Ended::Stopped);
    }
    let coordinator = prover_coordinator::start(config, Arc::clone(&stores.artifacts)).await?;
    let plane = coordinator.address();
    let control = coordinator.worker_control();
    if let Some(started) = started {
        started.send_replace(Some(Addresses {
            plane,
            observation: observing.address(),
        }));
    }
    tokio::spawn(tell_groups(rules.clone(), control.clone(), stop.clone()));
    let (leading, lead) = watch::channel(None);
    if let Access::ServiceAccounts { .. } = settings.access {
        let (client, namespace, cluster) = (
            client.clone(),
            settings.namespace.clone(),
            settings.cluster.clone(),
        );
        let stop = stop.clone();
        tokio::spawn(tell_pods(
            lead.clone(),
            directory.clone(),
            control.clone(),
            stop.clone(),
        ));
        tokio::spawn(async move {
            pods::run(client, &namespace, &cluster, directory, control, stop).await;
        });
    }
    let coordinator = Arc::new(coordinator);
    let candidate = candidate(settings, plane, observing.address());
    let confirmed = Confirmed::default();
    let teller = Teller::start(
        client.clone(),
        Some(settings.pod.clone()),
        metrics.clone(),
        stop.clone(),
    );
    tokio::spawn(tell_of_lead(lead.clone(), teller.clone(), candidate.clone()));
    let parts = Parts {
        teller,
        cluster: ClusterName {
            namespace: settings.namespace.as_str().into(),
            name: settings.cluster.as_str().into(),
        },
        coordinator: Arc::clone(&coordinator),
        sources: sources(&client, &rules, &clock),
        client: client.clone(),
        store: stores.artifacts,
        store_uri: store_uri(&settings.store)?,
        source_bytes,
        rules,
        clock: Arc::clone(&clock),
        metrics: metrics.clone(),
        lead,
        confirmed: confirmed.clone(),
    };
    let (jobs, synced) = Jobs::new(parts);
    let showing = tokio::spawn(show_readiness(
        synced.clone(),
        coordinator.role(),
        observation.clone(),
    ));
    let election = Election {
        lease: LeaseClient::new(client.clone(), candidate, Arc::clone(&clock), metrics.clone()),
        client,
        coordinator: Arc::clone(&coordinator),
        pod,
        observation: observation.clone(),
        confirmed,
        leading,
        synced,
        clock,
        metrics,
    };
    let ended = in_turn(election, jobs, &stop).await;
    observation.set_not_ready("it ends");
    showing.abort();
    end(coordinator).await;
    observing.stop().await;
    Ok(ended)
}

/// The election decides how long the jobs are looked after; what is settled of them is written before they are left.
async fn in_turn(election: Election, jobs: Jobs, stop: &CancellationToken) -> Ended {
    let jobs_stop = CancellationToken::new();
    let looking_after = tokio::spawn(jobs.run(jobs_stop.clone()));
    let ended = election.run(stop).await;
    if matches!(ended, Ended::Stopped) {
        jobs_stop.cancel();
        // Jobs that panicked have said so in the log.
        let _ = looking_after.await;
    } else {
        // Another one leads: nothing that this one wanted to write counts any more.
        looking_after.abort();
        let _ = looking_after.await;
    }
    ended
}

/// Who this replica is for the others.
fn candidate(settings: &Settings, plane: SocketAddr, probes: SocketAddr) -> Candidate {
    let reached = |listening: SocketAddr| {
        let address = settings.pod_address.unwrap_or(listening.ip());
        SocketAddr::new(address, listening.port()).to_string()
    };
    Candidate {
        pod: settings.pod.clone(),
        address: reached(plane),
        probes: reached(probes),
        namespace: settings.namespace.clone(),
        cluster: settings.cluster.clone(),
        cluster_uid: settings.cluster_uid.clone(),
    }
}

/// An event at the ProverCluster when this replica takes over.
async fn tell_of_lead(mut lead: watch::Receiver<Option<Lead>>, teller: Teller, candidate: Candidate) {
    let Ok(Some(lead)) = lead.wait_for(Option::is_some).await.map(|lead| lead.clone()) else {
        return;
    };
    let text = format!(
        "{} leads with epoch {}: {}",
        candidate.pod,
        lead.epoch,
        lead.cause.words()
    );
    let cluster = JobName {
        namespace: candidate.namespace.into(),
        name: candidate.cluster.into(),
        uid: candidate.cluster_uid.into(),
    };
    teller.tell_of_cluster(cluster, events::took_over(text));
}

async fn end(coordinator: Arc<CoordinatorHandle>) {
    match Arc::try_unwrap(coordinator) {
        Ok(coordinator) => coordinator.shutdown().await,
        // An admission that is still on its way ends with the process.
        Err(_) => tracing::warn!("the coordinator is still in use at its end"),
    }
}

/// Ready means that this replica leads or could take over at once: the store was probed, the listener is up, all watches
/// have told what there is, and the log has been read.
async fn show_readiness(
    mut synced: watch::Receiver<bool>,
    mut role: watch::Receiver<Role>,
    observation: Observation,
) {
    loop {
        let waits_for = if !*synced.borrow_and_update() {
            Some("the ProverCluster, its namespaces and their ProofJobs are being listed")
        } else if *role.borrow_and_update() == (Role::Following { caught_up: false }) {
            Some("the log of the leader is being read")
        } else {
            None
        };
        match waits_for {
            Some(waits_for) => observation.set_not_ready(waits_for),
            None => observation.set_ready(true),
        }
        let changed = tokio::select! {
            changed = synced.changed() => changed,
            changed = role.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// The artifact store, and the same place as the log uses it.
struct Stores {
    artifacts: Arc<dyn ArtifactStore>,
    log: Arc<dyn ArtifactStore>,
}

/// Where the log lies: below a prefix of its own, since several ProverClusters may share a bucket, and one that is made
/// anew under the same name begins anew.
fn durability(settings: &Settings, stores: &Stores) -> Result<Durability, StartError> {
    let prefix = Prefix::new(format!("clusters/{}/", settings.cluster_uid))
        .map_err(|source| StartError::Store { source })?;
    let log = LogConfig::new(Arc::clone(&stores.log), prefix);
    Ok(Durability::Log(Box::new(log)))
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
async fn open_stores(
    url: &str,
    observation: &Observation,
    pod: &OwnPod,
    stop: &CancellationToken,
) -> Result<Option<Stores>, StartError> {
    let log = prover_log::store_options(StoreOptions::default(), &prover_log::Limits::default());
    let mut wait = FIRST_RETRY;
    loop {
        let probed = async {
            let artifacts = prover_artifacts::open(url).await?;
            artifacts.probe().await?;
            let log = prover_artifacts::open_with(url, log.clone()).await?;
            Ok::<_, StoreError>(Stores { artifacts, log })
        };
        let error = tokio::select! {
            () = stop.cancelled() => return Ok(None),
            probed = probed => match probed {
                Ok(stores) => {
                    pod.set_store_trouble(None);
                    return Ok(Some(stores));
                }
                Err(error) => error,
            },
        };
        tracing::warn!(category = error.category(), %error, ?wait, "the artifact store can't be used yet");
        observation.set_not_ready(&format!("the artifact store can't be used yet: {error}"));
        pod.set_store_trouble(Some(format!(
            "{}: {error}",
            prover_coordinator::store_reason(&error)
        )));
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
    config.registry = registry.clone();
    config.clock = Arc::clone(clock);
    config.limits.lease = SILENCE_LIMIT;
    Ok(config)
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

/// Tells a coordinator that leads from now on which workers there are: it waits for no others of those that the log names.
/// Those that go later it hears of as they go.
async fn tell_pods(
    mut lead: watch::Receiver<Option<Lead>>,
    directory: PodDirectory,
    control: WorkerControl,
    stop: CancellationToken,
) {
    let telling = async {
        // None leads where the sender is gone.
        if lead.wait_for(Option::is_some).await.is_ok() {
            control.set_pods(directory.names().await).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = telling => {}
    }
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
