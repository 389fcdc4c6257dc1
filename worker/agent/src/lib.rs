//! The agent of a worker: takes attempts from the coordinator, has them run by backend children, one per device,
//! and reports what came of them.
//!
//! Owns: the session with the coordinator, the way of an attempt (fetch, run, store, report), prefetch, drain, and
//! the supervision of the children. Does not own: what is scheduled (the coordinator), how a task is run (the
//! backend), how bytes are kept (the artifact store), and GPUs.

mod agent;
mod attempt;
mod backoff;
mod calls;
mod child;
mod config;
mod connect;
mod error;
mod event;
mod files;
mod folder;
mod host;
pub mod launch;
mod limits;
mod metrics;
mod service;
mod session;
mod transfer;
mod usage;
mod work_directory;

pub use agent::{Agent, Departure, Leave};
pub use child::DEVICE_VARIABLE;
pub use config::{AgentConfig, BackendPlace, DeviceKind};
pub use error::AgentError;
pub use host::{Host, OutOfMemoryKills};
pub use session::Connection;
