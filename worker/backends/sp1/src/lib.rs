//! The SP1 backend: the worker components of `sp1-prover`, driven by our coordinator.
//!
//! Owns: which task of SP1 is which task of ours ([`graph`]), what its components ask for in our protocol ([`control_host`],
//! [`device_host`]), the root of a job ([`plan`]) and its verification ([`tasks`]). SP1's own code is reached
//! through the crate `prover-sp1-engine` only. Does not own: scheduling, retries, leases, transfer of artifacts.

pub mod backend;
pub mod circuits;
pub mod codec;
pub mod control_host;
pub mod device;
pub mod device_host;
pub mod failure;
pub mod graph;
pub mod input;
pub mod leftovers;
pub mod nested;
pub mod order;
pub mod plan;
pub mod route;
pub mod runtime;
pub mod settings;
pub mod store;
pub mod tasks;
pub mod watch;

pub use backend::Sp1;

/// Version of all SP1 crates: `Cargo.toml` pins it.
pub const SP1_VERSION: &str = "6.10.0";
