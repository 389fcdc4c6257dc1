//! The backend for RISC Zero's zkVM.
//!
//! Owns: everything about RISC Zero: what a program must be, executing it, which tasks prove it, proving them,
//! verifying receipts. Does not own: the protocol with the agent and the process (crate `prover-backend`).

pub mod backend;
pub mod execute;
pub mod graph;
pub mod input;
pub mod plan;
pub mod processor;
pub mod program;
pub mod prover;
pub mod sizing;
pub mod tasks;

pub use backend::Risc0;

/// Threads that a proof uses: RISC Zero takes rayon's pool, which this variable or the number of cores decides.
#[must_use]
pub fn proving_threads() -> usize {
    let asked = std::env::var("RAYON_NUM_THREADS")
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|n| *n > 0);
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}
