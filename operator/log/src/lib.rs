//! The log of one ProverCluster in its artifact store: opaque records, committed in groups, one leader at a time.
//!
//! Owns the protocol: which objects there are, who may create which, how a new leader fences the old one, when old
//! objects may go. Does not know what a record means. The protocol is the pure [`Machine`] (events in, store requests
//! out; time is a parameter, no randomness); [`Follower`] and [`Appender`] run it over an
//! [`ArtifactStore`](prover_artifacts::ArtifactStore).

mod error;
mod format;
mod limits;
mod machine;
mod metrics;
mod model;
mod names;
mod request;
mod shell;

pub use error::{AppendError, CheckpointError, LogError, Retry};
pub use limits::Limits;
pub use machine::{CheckpointContent, Machine};
pub use metrics::{GET_DOLLARS_PER_1000, Metrics, PUT_DOLLARS_PER_1000, Requests, dollars_per_hour};
pub use model::{Index, Phase, Progress, Replayed, State, WriterId};
pub use request::{Answer, Failure, Operation, Request, RequestId};
pub use shell::{Appender, Follower, TakenOver, store_options};
