//! The coordinator runs in this process: its log goes to a file of the run folder, since standard error belongs
//! to progress and messages.

use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// What is logged unless PROVER_LOG says otherwise.
const DEFAULT_FILTER: &str = "info";

/// Logs to `coordinator.log` in `directory`.
pub(crate) fn install(directory: &Path) -> std::io::Result<()> {
    let file = std::fs::File::create(directory.join("coordinator.log"))?;
    let filter = EnvFilter::try_from_env("PROVER_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(Mutex::new(file))
        .finish()
        .try_init()
        .map_err(std::io::Error::other)
}
