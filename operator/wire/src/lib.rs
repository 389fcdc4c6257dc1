//! The worker plane: the messages between the agents and the coordinator, and their limits; and the operator plane:
//! what the operator asks of a coordinator.
//!
//! Owns the generated types, the limits that both ends keep, and the checks of incoming messages. Does not own
//! what the messages mean: the coordinator and the agent decide that.

mod batch;
mod convert;
pub mod limits;
mod validate;

pub use batch::{Batched, Batcher, Each};
pub use convert::{artifact, sha256_bytes};
pub use validate::{Validate, WireError};

/// Generated from `proto/worker_plane.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod protocol {
    tonic::include_proto!("proving.worker.v1");
}

/// Generated from `proto/operator_plane.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod operator_plane {
    tonic::include_proto!("proving.operator.v1");
}

/// Version of the worker plane that this crate speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// Versions of the worker plane that this crate understands: one version of skew is tolerated on both ends.
pub const SUPPORTED_PROTOCOL_VERSIONS: std::ops::RangeInclusive<u32> = 1..=1;

/// Milliseconds for which the operator's word that workers shall leave holds. An operator that wants it to hold longer
/// says it again; one that has gone leaves no worker idle for ever.
pub const LEAVING_LIFE_MS: u64 = 60_000;

/// Name of the metadata entry that carries the bearer token.
pub const AUTHORIZATION: &str = "authorization";

/// What precedes the token in its metadata entry.
pub const BEARER: &str = "Bearer ";
