//! The scheduling core: which task runs where, when, and what happens when it fails.
//!
//! Owns every decision about jobs, tasks, attempts, leases, placement, fairness, retries, permits, markers,
//! channels and subscriptions of one ProverCluster. Does no I/O and knows no clock and no randomness: the shell
//! applies one [`Event`] at a time with the time at which it happens, and executes the [`Action`]s that come out.
#![forbid(unsafe_code)]

pub mod action;
pub mod event;
pub mod model;
pub mod state;
pub mod views;

pub use action::{
    Action, Answer, Assignment, JobPhase, Refusal, StopReason, TaskChange, TaskOutcome, WaitReason,
};
pub use event::{Event, Limits};
pub use model::*;
pub use state::State;
pub use views::{
    AttemptState, AttemptView, JobView, QueueDepth, TaskState, TaskTypeCount, TaskView, WorkerView,
};
