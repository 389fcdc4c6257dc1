//! The coordinator: the shell around the scheduling core of one ProverCluster.
//!
//! Owns the streams of workers, the admission of jobs, their sources and their views. Does not own decisions
//! (`prover-core`), bytes (`prover-artifacts`), nor where jobs come from: local mode and the Kubernetes shell both
//! submit to [`CoordinatorHandle`].

mod actor;
mod admission;
mod catalogue;
mod command;
mod config;
mod container;
mod convert;
mod deletes;
#[doc(hidden)]
pub mod engine;
mod error;
mod handle;
mod identity;
mod listener;
mod metrics;
mod operator_plane;
pub mod program;
mod record;
mod remembered;
mod replica;
mod role;
mod session;
mod sign_in;
mod sources;
mod start;
mod store_watch;
mod task_list;
mod view;

pub use admission::{INPUT, PROGRAM, PROOF, PUBLIC_VALUES, policy};
pub use config::{
    AuthenticationError, CoordinatorConfig, Durability, LogConfig, Secret, WorkerAuthentication,
    WorkerAuthenticator,
};
pub use error::{AdmissionError, CoordinatorError, ReleaseError, Retry};
pub use handle::{CoordinatorHandle, JobHandle, SourceAccess, WorkerControl};
pub use identity::{Identity, WORKER_ID_SEPARATOR};
pub use program::ProgramError;
pub use prover_core::{
    Binding, Feasible, Forecast, JobPolicy, Limits, Milliseconds, TaskId, TenantPolicy, Timestamp,
};
pub use role::{Role, TakeOverError};
pub use sources::{
    ClusterSources, FetchedContent, FetchedSource, RemoteError, RemoteProblem, SourceError, SourceRequest,
};
pub use start::start;
pub use store_watch::store_reason;
pub use task_list::TaskList;
pub use view::{
    ClassDepth, ClusterView, ExecutionReport, GroupDepth, GroupOffer, GroupProofs, JobView, Phase,
    ProofReport, ProofView, QueueDepth, StageProgress, TaskState, TaskView, WithheldProof, WorkerView,
};
