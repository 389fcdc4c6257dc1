//! The task that drives the engine: takes commands from a queue, tells the engine when its timers are due, and hands
//! on what the engine wants done.
//!
//! Owns waiting. Decides nothing: what the engine does depends on commands and time alone.

use std::sync::Arc;
use std::time::Duration;

use prover_runtime::Clock;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::command::Command;
use crate::deletes::Deletion;
use crate::engine::Engine;
use crate::handle::Control;
use crate::metrics::Metrics;
use crate::role::{Role, TakeOverError};

/// Commands that are applied before views and timers get their turn.
const COMMANDS_PER_TURN: usize = 256;

/// Drives an engine.
pub(crate) struct Actor {
    pub(crate) engine: Engine,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
    pub(crate) deletions: mpsc::Sender<Deletion>,
    pub(crate) role: watch::Sender<Role>,
    pub(crate) control: mpsc::Receiver<Control>,
}

impl Actor {
    /// Runs until it is stopped or nobody can send commands any more.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(COMMANDS_PER_TURN);
        loop {
            let wake = self.wake_at();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                count = commands.recv_many(&mut batch, COMMANDS_PER_TURN) => {
                    if count == 0 {
                        break;
                    }
                    for command in batch.drain(..) {
                        self.engine.handle(command);
                    }
                }
                Some(control) = self.control.recv() => match control {
                    Control::TakeOver { reply } => drop(reply.send(Err(TakeOverError::NotFollowing))),
                    Control::StepDown { reply } => {
                        self.role.send_replace(Role::Fenced);
                        self.engine.close_all();
                        let _ = reply.send(());
                        break;
                    }
                },
                () = sleep_until(wake) => {}
            }
            self.engine.run_timers();
            self.hand_on();
        }
        self.engine.close_all();
    }

    fn wake_at(&self) -> Option<Instant> {
        let due = self.engine.next_wake()?;
        let wait = due.0.saturating_sub(self.clock.now_milliseconds());
        // A timer that is due already still lets commands in between.
        Some(Instant::now() + Duration::from_millis(wait.max(1)))
    }

    fn hand_on(&mut self) {
        for deletion in self.engine.take_deletions() {
            match self.deletions.try_send(deletion) {
                Ok(()) => {}
                Err(TrySendError::Full(deletion)) => {
                    self.metrics.deletes.with_label_values(&["queue_full"]).inc();
                    tracing::warn!(
                        ?deletion,
                        "too many deletions wait: this one is left to the sweep of the job"
                    );
                }
                Err(TrySendError::Closed(_)) => self.metrics.deletes.with_label_values(&["stopped"]).inc(),
            }
        }
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}
