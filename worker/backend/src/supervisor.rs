//! The generated messages and stubs of `proto/supervisor.proto`, between an agent and the supervisor in a backend's
//! container.

mod generated {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
    tonic::include_proto!("proving.supervisor.v1");
}

pub use generated::*;

/// Version of the protocol.
pub const PROTOCOL_VERSION: u32 = 1;
