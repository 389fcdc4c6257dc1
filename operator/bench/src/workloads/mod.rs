//! The workloads that need neither network nor store.

mod decisions;
mod fairness;
mod loss;
mod makespan;
mod memory;
mod single_proof;

pub use decisions::{Decisions, decisions, task_specs};
pub use fairness::{Fairness, fairness};
pub use loss::{Loss, loss};
pub use makespan::{Makespan, makespan, mix};
pub use memory::{Memory, memory};
pub use single_proof::{PROVERS, Prover, SingleProof, single_proof};
