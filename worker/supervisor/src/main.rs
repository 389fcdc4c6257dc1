//! `prover-supervisor`: the first process of a backend's container.
//!
//! Owns: starting the backend when the agent asks for it, telling how it ended, killing all that it has started, and
//! reaping what nobody else reaps. Does not own: when to start again, and what an end means (the agent).
//!
//! It is linked statically, since it runs in images of users.

mod cgroup;
mod connect;
mod limits;
mod output;
mod program;
mod session;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use session::{SessionEnd, Supervisor};

/// Starts and watches the prover of a backend's container, as the worker's agent asks for it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Socket of the agent.
    #[arg(long)]
    socket: PathBuf,
    /// The prover and its arguments.
    #[arg(last = true, required = true, num_args = 1..)]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("PROVER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter)
        .init();
    // One thread: nothing else may wait for a child while a start has not been recorded.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(run(arguments));
            // A blocked write to the container's log must not keep the process.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("can't supervise the prover: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> std::io::Result<()> {
    // Orphans of the prover come to us although we may not be the first process, and are reaped and killed.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let children = signal(SignalKind::child())?;
    let mut terminations = Terminations::new()?;
    let mut supervisor = Supervisor::new(&arguments.command, &arguments.socket, children);
    let sessions = async {
        loop {
            let channel = connect::connect(&arguments.socket).await;
            let end = supervisor.serve(channel).await;
            supervisor.end_program().await;
            match end {
                SessionEnd::Shutdown => {
                    tracing::info!("the agent asked for the end");
                    return;
                }
                SessionEnd::Broken(problem) => {
                    tracing::warn!(%problem, "the agent is gone: the prover was ended, waiting for the agent");
                    tokio::time::sleep(limits::SHORTEST_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = sessions => return Ok(()),
        () = terminations.insist() => {}
    }
    supervisor.end_program().await;
    Ok(())
}

/// SIGTERM and SIGINT. In a pod that ends, all containers get SIGTERM at once: the agent drains first, and then asks
/// for the end.
struct Terminations {
    terminate: Signal,
    interrupt: Signal,
}

impl Terminations {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Comes back at the second signal outside of a container; in one, never.
    async fn insist(&mut self) {
        let in_container = rustix::process::getpid().as_raw_nonzero().get() == 1;
        let mut seen = 0;
        while in_container || seen < 2 {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
            seen += 1;
            if seen == 1 {
                tracing::info!("told to end: the agent finishes what runs and then asks for the end");
            }
        }
    }
}
