//! The binary `prover-operator`. Owns its command line; each subcommand is a crate or a module of its own.

mod controller;
mod coordinator;
mod crds;
mod process;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Many small pieces of memory, often freed by another thread than the one that asked for them, are what a coordinator
/// uses: this allocator is faster at it than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(
    name = "prover-operator",
    version,
    about = "Turns a Kubernetes cluster with GPUs into a zkVM proving service"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Reconcile ProverClusters and look after ProofJobs
    Controller(Box<controller::Arguments>),
    /// Schedule the tasks of one ProverCluster
    Coordinator(Box<coordinator::Arguments>),
    /// Write the CustomResourceDefinitions as YAML, or check that the files are up to date
    Crds(crds::Arguments),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Controller(arguments) => controller::main(*arguments),
        Command::Coordinator(arguments) => coordinator::main(*arguments),
        Command::Crds(arguments) => crds::run(&arguments),
    }
}
