//! The scheduling core: which task runs where, when, and what happens when it fails.
//!
//! Owns every decision about jobs, tasks, attempts, leases, placement, fairness, retries, permits, markers,
//! channels and subscriptions of one ProverCluster. Does no I/O and knows no clock and no randomness: the shell
//! applies one [`Event`] at a time with the time at which it happens, and executes the [`Action`]s that come out.
#![forbid(unsafe_code)]

pub mod action;
mod aging;
mod artifacts;
mod attempts;
mod bits;
mod cache;
mod calls;
mod channels;
mod classes;
mod control;
pub mod event;
pub mod fact;
mod failures;
mod forecast;
mod invariants;
mod jobs;
mod leases;
pub mod model;
mod names;
mod order;
mod permits;
mod placement;
mod queue;
pub mod recovery;
mod slab;
mod speculation;
mod speed;
pub mod state;
mod strays;
mod tasks;
mod timers;
pub mod views;
mod workers;

pub use action::{
    Action, Answer, Assignment, JobPhase, Refusal, StopReason, TaskChange, TaskOutcome, WaitReason,
};
pub use event::{Event, Limits};
pub use fact::{ArtifactFacts, Fact, RecoveryError, TaskCounts, TaskSuccess};
pub use forecast::{Feasible, Forecast, ForecastFacts};
pub use model::*;
pub use recovery::Replay;
pub use state::State;
pub use views::{
    ActionCacheView, AttemptState, AttemptView, JobView, QueueDepth, Standing, TaskState, TaskView,
    WorkerView,
};
