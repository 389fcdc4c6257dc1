//! Measures a proving service in a Kubernetes cluster from outside: how soon a job's first task runs, and how soon the
//! tasks of a lost worker run elsewhere.
//!
//! Owns the measuring and the limits that are held against it. Does not own the cluster, which runs already and has
//! the operator, nor any scenario (`prover-e2e`). Nothing is proved: the emulated backend only takes the time.

mod arguments;
mod latency;
mod loss;
mod observe;
mod report;
mod scene;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Benchmark};
use report::Report;
use scene::Scene;

/// Errors end the program with their text: nobody else handles them.
type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments).await {
        Ok(report) if report.within_range => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench-cluster: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let range = report::read_range(&arguments.range)?;
    let client = kube::Client::try_default().await?;
    let scene = Scene::begin(client, arguments).await?;
    let mut report = Report::begin();
    let measured = async {
        scene.await_workers().await?;
        match &arguments.benchmark {
            Benchmark::JobLatency(options) => latency::measure(&scene, options, &mut report).await,
            Benchmark::WorkerLoss(options) => loss::measure(&scene, options, &mut report).await,
        }
    }
    .await;
    let ended = scene.end().await;
    measured?;
    ended?;
    report.judge(&range);
    report.tell(arguments)?;
    Ok(report)
}
