//! Measures RISC Zero itself: each task alone, and a whole job proved locally by several processes.
//!
//! `tasks` times proving, lifting and joining. `local` proves a program with RISC Zero's prover, with the same task
//! graph and the same number of processes and threads as a worker group would have, but with nothing in between: no
//! coordinator, no agent, no store, no gRPC. It is what the cost of proving through a coordinator is compared with.
//! Results are one line of JSON each on standard output.

mod local;
mod tasks;
mod usage;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use prover_backend_risc0::processor;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Times each task type over one segment.
    Tasks {
        #[command(flatten)]
        job: Job,
        /// How often proving is measured.
        #[arg(long, default_value_t = 3)]
        proves: usize,
        /// How often lift and join are measured; 0 leaves them out.
        #[arg(long, default_value_t = 2)]
        recursions: usize,
    },
    /// Proves the whole job with several processes.
    Local {
        #[command(flatten)]
        job: Job,
        /// Processes that prove.
        #[arg(long, default_value_t = 2)]
        workers: usize,
        /// Kind of the proof: Composite or Succinct.
        #[arg(long, default_value = "Succinct")]
        kind: String,
        /// Folder for what the processes exchange; removed afterwards. Memory is the fairest.
        #[arg(long, default_value = "/dev/shm")]
        folder: PathBuf,
        /// Where the receipt is written.
        #[arg(long)]
        proof: Option<PathBuf>,
    },
    /// A process of `local`.
    #[command(hide = true)]
    Worker,
}

#[derive(clap::Args)]
struct Job {
    /// The program.
    #[arg(long)]
    program: PathBuf,
    /// Its input; nothing where it is not given.
    #[arg(long)]
    input: Option<PathBuf>,
    /// Size of segments, as a power of two.
    #[arg(long, default_value_t = 16)]
    segment_po2: u32,
}

/// Errors end the program with their text: nobody else handles them.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    let missing = processor::missing_features();
    if !missing.is_empty() {
        eprintln!("prover-risc0-bench: {}", processor::complaint(&missing));
        return ExitCode::from(processor::EXIT_UNSUPPORTED);
    }
    let done = match Arguments::parse().command {
        Command::Tasks {
            job,
            proves,
            recursions,
        } => tasks::run(&job, proves, recursions),
        Command::Local {
            job,
            workers,
            kind,
            folder,
            proof,
        } => local::run(
            &job,
            &local::Options {
                workers,
                kind,
                folder,
                proof,
            },
        ),
        Command::Worker => local::worker(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("prover-risc0-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Job {
    fn load(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        let read =
            |path: &PathBuf| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        let input = self.input.as_ref().map(read).transpose()?.unwrap_or_default();
        Ok((read(&self.program)?, input))
    }
}
