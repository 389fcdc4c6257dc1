//! Subcommand `coordinator`: the process that schedules the tasks of one ProverCluster.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use prover_kubernetes::{Access, ConnectError, Settings, StartError, connect};
use prover_runtime::{LoggingArguments, LoggingError, stop_on_signal};

use crate::process;

/// How the coordinator of a cluster is started. Every argument is also an environment variable. The credentials of
/// the store come from the usual variables of S3 (AWS_ACCESS_KEY_ID, ...) or the pod's identity.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Namespace of the ProverCluster, which is also that of this process
    #[arg(long, env = "PROVER_NAMESPACE")]
    namespace: String,
    /// Name of the ProverCluster
    #[arg(long, env = "PROVER_CLUSTER")]
    cluster: String,
    /// Where workers and the operator connect
    #[arg(long, env = "PROVER_LISTEN", default_value = "0.0.0.0:7000")]
    listen: SocketAddr,
    /// Folder of tls.crt and tls.key, which are read again when they change
    #[arg(long, env = "PROVER_TLS_DIRECTORY", default_value = prover_crds::names::TLS_DIRECTORY)]
    tls_directory: PathBuf,
    /// Artifact store, such as s3://bucket/prefix?region=...&endpoint=...
    #[arg(long, env = "PROVER_STORE")]
    store: String,
    /// ServiceAccount of the operator as NAMESPACE:NAME
    #[arg(long, env = "PROVER_OPERATOR_SERVICE_ACCOUNT", value_parser = service_account)]
    operator_service_account: ServiceAccount,
    /// Whether a worker must call from an address of its pod; false where the network in between changes addresses
    #[arg(long, env = "PROVER_CHECK_WORKER_ADDRESS", default_value_t = true, action = clap::ArgAction::Set)]
    check_worker_address: bool,
    /// Name of this pod: unique among the replicas
    #[arg(long, env = "PROVER_POD_NAME")]
    pod_name: String,
    /// Address of this pod, at which workers and other replicas reach it; where it listens, if absent
    #[arg(long, env = "PROVER_POD_IP")]
    pod_ip: Option<IpAddr>,
    /// UID of the ProverCluster, below which its log lies
    #[arg(long, env = "PROVER_CLUSTER_UID")]
    cluster_uid: String,
    /// Address of /metrics, /healthz and /readyz
    #[arg(long, env = "PROVER_METRICS_ADDRESS", default_value = "0.0.0.0:9090")]
    metrics_address: SocketAddr,
    #[command(flatten)]
    logging: LoggingArguments,
}

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ServiceAccount {
    namespace: String,
    name: String,
}

fn service_account(text: &str) -> Result<ServiceAccount, String> {
    match text.split_once(':') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains(':') => {
            Ok(ServiceAccount {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            })
        }
        _ => Err("write NAMESPACE:NAME, such as prover-operator:prover-operator".to_owned()),
    }
}

/// Why the coordinator could not start, or ended.
#[derive(Debug, thiserror::Error)]
enum CoordinatorError {
    #[error(transparent)]
    Logging(#[from] LoggingError),
    #[error("can't start: {0}")]
    System(#[from] std::io::Error),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Start(#[from] StartError),
}

pub(crate) fn main(arguments: Arguments) -> ExitCode {
    let logging = arguments.logging.clone();
    process::run("coordinator", &logging, Box::pin(serve(arguments)))
}

async fn serve(arguments: Arguments) -> Result<(), CoordinatorError> {
    let stop = stop_on_signal()?;
    let client = connect().await?;
    let settings = Settings {
        namespace: arguments.namespace,
        cluster: arguments.cluster,
        listen: arguments.listen,
        store: arguments.store,
        access: Access::ServiceAccounts {
            tls_directory: arguments.tls_directory,
            operator_namespace: arguments.operator_service_account.namespace,
            operator_account: arguments.operator_service_account.name,
            check_address: arguments.check_worker_address,
        },
        metrics_address: arguments.metrics_address,
        pod: arguments.pod_name,
        pod_address: arguments.pod_ip,
        cluster_uid: arguments.cluster_uid,
    };
    prover_kubernetes::run(settings, client, stop, None).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_account_is_a_namespace_and_a_name() {
        let good = ServiceAccount {
            namespace: "prover".to_owned(),
            name: "operator".to_owned(),
        };
        assert_eq!(service_account("prover:operator"), Ok(good));
        for bad in ["", "prover", ":operator", "prover:", "a:b:c"] {
            assert!(service_account(bad).is_err(), "{bad}");
        }
    }
}
