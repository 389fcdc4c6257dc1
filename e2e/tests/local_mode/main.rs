//! Local mode as a user sees it: the real programs, real processes, and what happens when something goes wrong.
//!
//! Nothing here proves anything: jobs are emulated, or end before RISC Zero would begin to prove. Real proofs are
//! in `real_proof.rs`.

#![expect(
    clippy::unwrap_used,
    reason = "a test that lacks what it looks for has failed"
)]

mod bad_input;
mod commands;
mod faults;
mod signals;
mod storage;
mod success;
