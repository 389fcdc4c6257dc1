//! Why a coordinator does not start, and why it does not take a job.

use std::net::SocketAddr;

use prover_core::Refusal;

use crate::program::ProgramError;
use crate::sources::SourceError;

/// What is worth trying again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same will happen again.
    Never,
    /// It may pass by itself.
    Backoff,
}

/// Why a coordinator does not start or does not answer.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// The address can't be listened on.
    #[error("can't listen on {address} for workers: {source}")]
    Bind {
        /// As configured.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The store can't be used.
    #[error("the artifact store can't be used: {source}")]
    StoreUnusable {
        /// What the probe found.
        source: prover_artifacts::StoreError,
    },
    /// The log can't be used.
    #[error("the log in the artifact store can't be used: {source}")]
    Log {
        /// What is wrong with it.
        #[from]
        source: prover_log::LogError,
    },
    /// A metric is registered already: two coordinators share one registry.
    #[error("metrics can't be registered: {source}")]
    Metrics {
        /// What the registry said.
        #[from]
        source: prover_runtime::prometheus::Error,
    },
    /// A limit of the configuration makes no sense.
    #[error("{field} of the coordinator's configuration is {value}: it must be {expected}")]
    InvalidConfiguration {
        /// Name of the field.
        field: &'static str,
        /// As given.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
    /// It has been shut down.
    #[error("the coordinator has been shut down")]
    Stopped,
}

/// Why it can't be said what of a job may be deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// Too many of its artifacts are read by other jobs.
    #[error("other jobs still read more than {limit} artifacts of it")]
    TooManyHeld {
        /// The most that are told.
        limit: usize,
    },
    /// Attempts of it have not left their devices yet, or the log does not have its end yet.
    #[error("its attempts have not left their devices, or the log can't be written")]
    NotYet,
    /// Another coordinator leads.
    #[error("this coordinator does not lead")]
    NotLeader,
    /// It has been shut down.
    #[error("the coordinator has been shut down")]
    Stopped,
}

impl ReleaseError {
    /// Short name for metrics and events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            ReleaseError::TooManyHeld { .. } => "too_many_held",
            ReleaseError::NotYet => "not_yet",
            ReleaseError::NotLeader => "not_leader",
            ReleaseError::Stopped => "stopped",
        }
    }

    /// What is worth trying again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            ReleaseError::NotLeader | ReleaseError::Stopped => Retry::Never,
            ReleaseError::TooManyHeld { .. } | ReleaseError::NotYet => Retry::Backoff,
        }
    }
}

impl CoordinatorError {
    /// Short name for metrics and events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            CoordinatorError::Bind { .. } => "bind",
            CoordinatorError::StoreUnusable { .. } => "store_unusable",
            CoordinatorError::Log { source } => source.category(),
            CoordinatorError::Metrics { .. } => "metrics",
            CoordinatorError::InvalidConfiguration { .. } => "invalid_configuration",
            CoordinatorError::Stopped => "stopped",
        }
    }

    /// What is worth trying again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            CoordinatorError::Bind { .. } | CoordinatorError::StoreUnusable { .. } => Retry::Backoff,
            CoordinatorError::Log { source } => match source.retry() {
                prover_log::Retry::Never => Retry::Never,
                _ => Retry::Backoff,
            },
            CoordinatorError::Metrics { .. }
            | CoordinatorError::InvalidConfiguration { .. }
            | CoordinatorError::Stopped => Retry::Never,
        }
    }
}

/// Why a job is not taken. The message is for the user: what is wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// The manifest breaks a rule of the resource type.
    #[error("spec of ProofJob {job} is invalid: {}", .violations.join("; "))]
    InvalidSpec {
        /// Name of the job.
        job: String,
        /// One sentence for each rule.
        violations: Vec<String>,
    },
    /// The manifest uses something that this way of running has not.
    #[error("{field} can't be used here: {reason}")]
    NotSupported {
        /// Path of the field.
        field: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A backend of the proof system is there, but makes no such proof.
    #[error(
        "spec.proof.kind: backend {backend} {version} does not make {system} proofs of kind {kind}; it offers {offered}"
    )]
    KindNotOffered {
        /// Name of the backend.
        backend: String,
        /// Its version.
        version: String,
        /// As asked for.
        system: String,
        /// As asked for.
        kind: String,
        /// What may be asked for.
        offered: String,
    },
    /// A backend of the proof system is there and would make such a proof, but misses something.
    #[error(
        "no worker makes {kind} proofs. Backend {backend} says: {message}. Repair that and create the job again"
    )]
    Withheld {
        /// Name and version of the backend.
        backend: String,
        /// System and kind of the proof, as asked for.
        kind: String,
        /// Its word for it.
        reason: String,
        /// Its words: what is missing, and where.
        message: String,
    },
    /// Program, input or an assumption can't be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The program is not what the proof system runs.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The scheduling core refused.
    #[error("ProofJob {job} is refused: {refusal}")]
    Refused {
        /// Name of the job.
        job: String,
        /// Its words.
        refusal: Refusal,
    },
    /// Too many jobs wait for a worker of their proof system.
    #[error("{limit} jobs are known already: wait until some are finished and forgotten")]
    TooManyJobs {
        /// The limit.
        limit: usize,
    },
    /// Another coordinator takes jobs.
    #[error("this coordinator does not lead: the one that does will take the job")]
    NotLeader,
    /// What is taken can't be remembered now.
    #[error("the log in the artifact store can't be written now: the job is taken when it can be again")]
    LogUnavailable,
    /// The coordinator has been shut down.
    #[error("the coordinator has been shut down")]
    Stopped,
}

impl AdmissionError {
    /// Short name for metrics and events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            AdmissionError::InvalidSpec { .. } => "invalid_spec",
            AdmissionError::NotSupported { .. } => "not_supported",
            AdmissionError::KindNotOffered { .. } => "kind_not_offered",
            AdmissionError::Withheld { .. } => "withheld",
            AdmissionError::Source(error) => error.category(),
            AdmissionError::Program(error) => error.category(),
            AdmissionError::Refused { .. } => "refused",
            AdmissionError::TooManyJobs { .. } => "too_many_jobs",
            AdmissionError::NotLeader => "not_leader",
            AdmissionError::LogUnavailable => "log_unavailable",
            AdmissionError::Stopped => "stopped",
        }
    }

    /// Short CamelCase word for the job's condition.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            AdmissionError::InvalidSpec { .. } => "InvalidSpec",
            AdmissionError::NotSupported { .. } => "NotSupported",
            AdmissionError::KindNotOffered { .. } => "KindNotOffered",
            AdmissionError::Withheld { reason, .. } => reason,
            AdmissionError::Source(error) => error.reason(),
            AdmissionError::Program(error) => error.reason(),
            AdmissionError::Refused { .. } => "Refused",
            AdmissionError::TooManyJobs { .. } => "TooManyJobs",
            AdmissionError::NotLeader => "NotLeader",
            AdmissionError::LogUnavailable => "LogUnavailable",
            AdmissionError::Stopped => "CoordinatorStopped",
        }
    }

    /// The user's manifest, program, input or store is at fault.
    #[must_use]
    pub fn bad_input(&self) -> bool {
        match self {
            AdmissionError::InvalidSpec { .. }
            | AdmissionError::NotSupported { .. }
            | AdmissionError::KindNotOffered { .. }
            | AdmissionError::Program(_) => true,
            AdmissionError::Source(error) => error.bad_input(),
            AdmissionError::Withheld { .. }
            | AdmissionError::Refused { .. }
            | AdmissionError::TooManyJobs { .. }
            | AdmissionError::NotLeader
            | AdmissionError::LogUnavailable
            | AdmissionError::Stopped => false,
        }
    }

    /// What is worth trying again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            AdmissionError::Source(error) => error.retry(),
            AdmissionError::TooManyJobs { .. }
            | AdmissionError::NotLeader
            | AdmissionError::LogUnavailable => Retry::Backoff,
            _ => Retry::Never,
        }
    }
}
