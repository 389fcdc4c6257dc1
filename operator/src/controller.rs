//! Subcommand `controller`: the operator itself.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use prometheus::Registry;
use prover_controller::Settings;
use prover_controller::run::{ConnectError, Operator, RunError, connect, reconcile_prover_clusters, run};
use prover_runtime::{
    ListenerError, LoggingArguments, LoggingError, Observation, SystemClock, stop_on_signal,
};

use crate::process;

/// How the operator is started. Every argument is also an environment variable.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Namespace of the operator itself, where the keys of certificate authorities are kept
    #[arg(long, env = "PROVER_NAMESPACE")]
    namespace: String,
    /// Name of the operator's ServiceAccount, with which it signs in to coordinators
    #[arg(long, env = "PROVER_SERVICE_ACCOUNT", default_value = prover_crds::names::PROJECT)]
    service_account: String,
    /// Name of the operator's pod: unique among replicas
    #[arg(long, env = "PROVER_POD_NAME")]
    pod_name: String,
    /// Image of coordinators that name none
    #[arg(long, env = "PROVER_COORDINATOR_IMAGE")]
    coordinator_image: String,
    /// Image of the agent of workers
    #[arg(long, env = "PROVER_WORKER_IMAGE")]
    worker_image: String,
    /// Pull policy of both images
    #[arg(long, env = "PROVER_IMAGE_PULL_POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    image_pull_policy: Option<String>,
    /// Secrets in the namespaces of clusters with which both images are fetched, separated by commas
    #[arg(long, env = "PROVER_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    image_pull_secrets: Vec<String>,
    /// Namespaces that are looked at, separated by commas; all where none is named
    #[arg(long, env = "PROVER_WATCH_NAMESPACES", value_delimiter = ',')]
    watch_namespaces: Vec<String>,
    /// Address of /metrics, /healthz and /readyz
    #[arg(long, env = "PROVER_METRICS_ADDRESS", default_value = "0.0.0.0:9090")]
    metrics_address: SocketAddr,
    #[command(flatten)]
    logging: LoggingArguments,
}

/// Why the operator could not start, or ended.
#[derive(Debug, thiserror::Error)]
enum ControllerError {
    #[error(transparent)]
    Logging(#[from] LoggingError),
    #[error("can't start: {0}")]
    System(#[from] std::io::Error),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Listener(#[from] ListenerError),
    #[error(transparent)]
    Run(#[from] RunError),
}

pub(crate) fn main(arguments: Arguments) -> ExitCode {
    let logging = arguments.logging.clone();
    process::run("controller", &logging, serve(arguments))
}

async fn serve(arguments: Arguments) -> Result<(), ControllerError> {
    let stop = stop_on_signal()?;
    let registry = Registry::new();
    let observation = Observation::new(registry.clone());
    let listener = observation.serve(arguments.metrics_address).await?;
    let client = connect().await?;
    let named = |values: Vec<String>| values.into_iter().filter(|value| !value.is_empty()).collect();
    let settings = Settings {
        namespace: arguments.namespace,
        service_account: arguments.service_account,
        pod: arguments.pod_name,
        coordinator_image: arguments.coordinator_image,
        worker_image: arguments.worker_image,
        image_pull_policy: arguments.image_pull_policy.filter(|policy| !policy.is_empty()),
        image_pull_secrets: named(arguments.image_pull_secrets),
        watch_namespaces: named(arguments.watch_namespaces),
    };
    let operator = Operator {
        client,
        settings,
        registry,
        observation,
        clock: Arc::new(SystemClock::new()),
        reconcile: reconcile_prover_clusters(),
    };
    let ended = run(operator, stop).await;
    if ended.is_ok() {
        listener.stop().await;
    }
    Ok(ended?)
}
