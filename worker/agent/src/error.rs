//! Why an agent can't start or must end.

use std::path::PathBuf;

use prover_artifacts::StoreError;

/// An error that ends the agent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The configuration can't be used.
    #[error("{what}: {problem}")]
    Configure {
        /// Which argument.
        what: &'static str,
        /// What is wrong and what to write instead.
        problem: String,
    },
    /// The store can't be opened.
    #[error(transparent)]
    OpenStore {
        /// What the store said.
        #[from]
        source: StoreError,
    },
    /// The work directory can't be used.
    #[error("could not {action} {}: {source}. Give --work-directory a folder that this user may write", path.display())]
    UseWorkDirectory {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Another agent uses the work directory.
    #[error("the work directory {} is used by another worker: give each worker its own", path.display())]
    WorkDirectoryTaken {
        /// Which.
        path: PathBuf,
    },
    /// A socket for backends can't be made.
    #[error("could not listen on {}: {source}. Its folder must be one that this user may write", path.display())]
    Listen {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// No backend child can be started on any device.
    #[error("the backend can't be started: {problem}")]
    StartBackend {
        /// What happened, with the child's last words.
        problem: String,
    },
    /// A thread or runtime can't be started.
    #[error("could not start {what}: {source}")]
    StartThread {
        /// Which.
        what: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A metric is registered twice.
    #[error("could not register the agent's metrics: {source}")]
    RegisterMetrics {
        /// What the registry said.
        #[from]
        source: prometheus::Error,
    },
    /// A part of the agent ended by a fault of its own.
    #[error("the agent's {part} ended unexpectedly: this is a fault of the agent")]
    PartEnded {
        /// Which.
        part: &'static str,
    },
}

impl AgentError {
    /// Short name for metrics and logs.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Configure { .. } => "configure",
            Self::OpenStore { .. } => "open_store",
            Self::UseWorkDirectory { .. } => "use_work_directory",
            Self::WorkDirectoryTaken { .. } => "work_directory_taken",
            Self::Listen { .. } => "listen",
            Self::StartBackend { .. } => "start_backend",
            Self::StartThread { .. } => "start_thread",
            Self::RegisterMetrics { .. } => "register_metrics",
            Self::PartEnded { .. } => "part_ended",
        }
    }

    /// Whether starting the agent again as it is may go well.
    #[must_use]
    pub fn retry(&self) -> bool {
        matches!(
            self,
            Self::StartThread { .. } | Self::StartBackend { .. } | Self::PartEnded { .. }
        )
    }
}
