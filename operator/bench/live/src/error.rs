//! Why a benchmark could not be run.

/// Why a benchmark could not be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LiveError {
    /// The coordinator did not start or stopped.
    #[error("the coordinator: {0}")]
    Coordinator(#[from] prover_coordinator::CoordinatorError),
    /// A job was refused.
    #[error("a job is refused: {0}")]
    Admission(#[from] prover_coordinator::AdmissionError),
    /// A job did not succeed.
    #[error("a job ended as {phase}: {words}")]
    JobFailed {
        /// Its phase.
        phase: &'static str,
        /// The coordinator's words.
        words: String,
    },
    /// The store failed.
    #[error("the store: {0}")]
    Store(#[from] prover_artifacts::StoreError),
    /// A connection failed.
    #[error("a connection: {0}")]
    Transport(#[from] h2::Error),
    /// A call was refused.
    #[error("a call is refused: {words}")]
    Refused {
        /// The coordinator's words.
        words: String,
    },
    /// Something did not come.
    #[error("{what} did not come")]
    Silence {
        /// What.
        what: &'static str,
    },
    /// A new leader does not know all tasks of the one before.
    #[error("the new leader knows {found} tasks of {wanted}")]
    Lost {
        /// Tasks that it knows.
        found: usize,
        /// Tasks that there are.
        wanted: usize,
    },
    /// Postgres failed.
    #[error("Postgres: {0}")]
    Postgres(#[from] tokio_postgres::Error),
    /// Redis failed.
    #[error("Redis: {0}")]
    Redis(#[from] redis::RedisError),
    /// The log can't be led with.
    #[error(transparent)]
    TakeOver(#[from] prover_coordinator::TakeOverError),
    /// A file or thread failed.
    #[error("the system: {0}")]
    System(#[from] std::io::Error),
    /// The results can't be kept.
    #[error(transparent)]
    Report(#[from] prover_bench::report::ReportError),
}
