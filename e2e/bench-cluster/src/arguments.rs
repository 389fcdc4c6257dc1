//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Measures a proving service in the cluster that KUBECONFIG names.
#[derive(Debug, Parser)]
#[command(name = "bench-cluster", version)]
pub(crate) struct Arguments {
    /// File with the limits that are accepted.
    #[arg(
        long,
        value_name = "FILE",
        global = true,
        default_value = "e2e/bench-cluster-range.json"
    )]
    pub(crate) range: PathBuf,
    /// Also write the result as JSON to this file.
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) results: Option<PathBuf>,
    /// Image of the emulated backend.
    #[arg(long, global = true, default_value = concat!("localhost/prover-backend-emulated:", env!("CARGO_PKG_VERSION")))]
    pub(crate) backend_image: String,
    /// S3 endpoint of the artifact store, as pods see it.
    #[arg(long, global = true, default_value = "http://minio.minio.svc:9000")]
    pub(crate) endpoint: String,
    /// Bucket of the artifact store.
    #[arg(long, global = true, default_value = "proofs")]
    pub(crate) bucket: String,
    /// Secret with the store's credentials, as NAMESPACE/NAME; it is copied.
    #[arg(long, global = true, default_value = "minio/minio")]
    pub(crate) credentials: String,
    #[command(subcommand)]
    pub(crate) benchmark: Benchmark,
}

/// What is measured.
#[derive(Debug, Subcommand)]
pub(crate) enum Benchmark {
    /// Time from the creation of a ProofJob to its first running task on a warm worker.
    JobLatency(JobLatency),
    /// Time from the loss of a worker until the coordinator has acted and its task runs elsewhere.
    WorkerLoss(WorkerLoss),
}

/// Options of `job-latency`.
#[derive(Debug, Args)]
pub(crate) struct JobLatency {
    /// Jobs, one after the other.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    pub(crate) jobs: u32,
    /// Jobs before these that are not counted.
    #[arg(long, default_value_t = 5)]
    pub(crate) warm_up: u32,
}

/// Options of `worker-loss`.
#[derive(Debug, Args)]
pub(crate) struct WorkerLoss {
    /// Rounds of each kind of loss.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// Length of the task that is lost, in seconds.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(4..=600))]
    pub(crate) task_seconds: u32,
    /// Command that runs its arguments on the node of the workers, such as e2e/cluster/node.sh. Without it no process
    /// can be struck, so only pods are deleted.
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) node_command: Option<PathBuf>,
}
