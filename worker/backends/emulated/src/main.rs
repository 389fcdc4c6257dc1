//! A backend that makes nothing up but time: it runs the graph of a real prover from a model of its durations,
//! sizes and failures. For tests and for scale. It never claims a proof: what it writes says so, and its `verify`
//! refuses everything.
//!
//! Owns the model, the planner that turns it into tasks, and the ways in which a task can go wrong on purpose.
//! Does not own anything about real proofs.

mod failures;
mod model;
mod plan;
mod runner;

fn main() -> std::process::ExitCode {
    prover_backend::main(runner::Emulated)
}
