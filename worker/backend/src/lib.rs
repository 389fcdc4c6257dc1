//! The protocol between an agent and a backend, and the kit for writing backends in Rust.
//!
//! Owns: the generated messages and stubs of both sides ([`protocol`]), the rules that messages must keep
//! ([`validate`], used by both sides), the process of a backend ([`main`], [`serve`]), what an attempt can do
//! ([`Attempt`]), what inputs look like ([`frames()`]), and two pieces of planning that proof systems with a join tree
//! share ([`JoinTree`], [`InFlight`]). Does not own: supervision of backend processes, leases, transfer of artifacts (the agent), nor
//! anything about a proof system.
//!
//! A backend is a type that implements [`Backend`] and a `main` of one line:
//!
//! ```no_run
//! # use prover_backend::{Attempt, Backend, Completed, TaskError, protocol, VerifyRequest, Verified, VerifyFailure};
//! # struct MyBackend;
//! # #[async_trait::async_trait]
//! # impl Backend for MyBackend {
//! #     fn describe(&self) -> protocol::BackendDescription { protocol::BackendDescription::default() }
//! #     async fn run(&self, _: Attempt) -> Result<Completed, TaskError> { Ok(Completed::default()) }
//! #     fn verify_file(&self, _: &VerifyRequest) -> Result<Verified, VerifyFailure> {
//! #         Err(VerifyFailure::refused("no")) }
//! # }
//! fn main() -> std::process::ExitCode {
//!     prover_backend::main(MyBackend)
//! }
//! ```

mod attempt;
mod backend;
mod command;
mod error;
mod frames;
mod in_flight;
mod join_tree;
pub mod limits;
pub mod protocol;
mod serve;
pub mod supervisor;
pub mod validate;

pub use async_trait::async_trait;
pub use attempt::{Attempt, ChannelMessages, Completed, SubmittedTask, TaskResults};
pub use backend::{Backend, Verified, VerifyFailure, VerifyRequest};
pub use command::{AGENT_SOCKET_VARIABLE, DEVICE_CLASS_VARIABLE, device_class, main};
pub use error::{CallError, TaskError};
pub use frames::{FramesError, frames};
pub use in_flight::{ChildFailed, InFlight};
pub use join_tree::{Join, JoinTree, Node};
pub use serve::{ServeEnd, ServeError, serve};
pub use tokio_util::sync::CancellationToken;
