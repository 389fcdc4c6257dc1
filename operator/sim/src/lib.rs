//! The deterministic simulation: the production coordinator in a cluster that exists only in memory, with faults.
//!
//! One seed is one run: it draws the cluster, the jobs, the users and the faults, and the same seed does the same
//! again, event by event. Checkers that only see what workers, store and API server see judge what must always hold
//! while faults strike, and that all jobs end and nothing is left when everything has healed. Owns the models of
//! everything that does I/O; decisions are those of `prover-coordinator` and `prover-core`, which run unchanged.
#![forbid(unsafe_code)]

mod api;
mod check;
mod faults;
mod log;
mod model;
mod network;
mod random;
mod replica;
mod store;
mod trace;
mod worker;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use world::World;

pub use world::Violation;

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The promise that was broken first, if any.
    pub violation: Option<Violation>,
    /// Two runs with the same number did the same in the same order.
    pub trace_hash: u64,
    /// What happened, line by line, if that was asked for.
    pub trace: Option<String>,
    /// Events that happened.
    pub events: u64,
    /// Virtual milliseconds that passed.
    pub milliseconds: u64,
}

/// Runs one seed to its end or to the first broken promise.
#[must_use]
pub fn run(seed: u64, keep_trace: bool) -> Outcome {
    let mut world = World::new(seed, keep_trace);
    // Assertions of the production code are promises too.
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    if let Err(panic) = ended {
        let words = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|words| (*words).to_owned()))
            .unwrap_or_default();
        world.violated("assertions", words);
    }
    if keep_trace && world.violation.is_some() {
        world.tell_beliefs();
    }
    Outcome {
        violation: world.violation.take(),
        trace_hash: world.trace.hash(),
        events: world.events,
        milliseconds: world.now,
        trace: world.trace.text.take(),
    }
}
