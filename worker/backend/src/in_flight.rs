//! Submitting tasks while executing, with a bound on those that are not finished.

use std::collections::BTreeSet;

use futures::StreamExt;
use futures::stream::SelectAll;

use crate::attempt::{Attempt, SubmittedTask, TaskResults};
use crate::error::{CallError, TaskError};
use crate::limits::{MAX_SUBSCRIBED_TASKS, MAX_SUBSCRIPTION_STREAMS, SUBSCRIBE_PAUSE};
use crate::protocol::{TaskResult, TaskSubmission};

/// Tasks of a planner that are not finished. [`InFlight::submit`] waits until there is room for what it submits.
pub struct InFlight {
    attempt: Attempt,
    limit: usize,
    unfinished: BTreeSet<String>,
    unsubscribed: Vec<String>,
    streams: SelectAll<TaskResults>,
}

/// Why waiting for tasks ended badly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChildFailed {
    /// A task failed for good. Its job fails with it, so there is nothing left to plan.
    #[error("task {request_id} failed: {message}")]
    Task {
        /// Which.
        request_id: String,
        /// Its last failure.
        message: String,
    },
    /// A call to the agent failed.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl ChildFailed {
    /// Label for metrics.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Task { .. } => "child_failed",
            Self::Call(error) => error.category(),
        }
    }

    /// Whether trying again may go well.
    #[must_use]
    pub fn retry(&self) -> bool {
        matches!(self, Self::Call(error) if error.retry())
    }
}

impl From<ChildFailed> for TaskError {
    fn from(error: ChildFailed) -> Self {
        match error {
            ChildFailed::Task { .. } => Self::fatal("TaskFailed", error.to_string()),
            ChildFailed::Call(error) => error.into(),
        }
    }
}

impl InFlight {
    /// At most `limit` unfinished tasks, [`MAX_SUBSCRIBED_TASKS`] where it is 0 or larger.
    #[must_use]
    pub fn new(attempt: Attempt, limit: u32) -> Self {
        let limit = match limit as usize {
            0 => MAX_SUBSCRIBED_TASKS,
            limit => limit.min(MAX_SUBSCRIBED_TASKS),
        };
        Self {
            attempt,
            limit,
            unfinished: BTreeSet::new(),
            unsubscribed: Vec::new(),
            streams: SelectAll::new(),
        }
    }

    /// How many submitted tasks are not known to be finished.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.unfinished.len()
    }

    /// Waits until there is room, then submits. A batch larger than the limit is submitted when nothing else is in
    /// flight, so a planner never stands still. Tasks that have already succeeded take no room.
    pub async fn submit(&mut self, tasks: Vec<TaskSubmission>) -> Result<Vec<SubmittedTask>, ChildFailed> {
        while !self.unfinished.is_empty() && self.unfinished.len() + tasks.len() > self.limit {
            self.next().await?;
        }
        let request_ids: Vec<String> = tasks.iter().map(|task| task.request_id.clone()).collect();
        let answers = self.attempt.submit_tasks(tasks).await?;
        for (request_id, answer) in request_ids.into_iter().zip(&answers) {
            if !answer.already_succeeded && self.unfinished.insert(request_id.clone()) {
                self.unsubscribed.push(request_id);
            }
        }
        Ok(answers)
    }

    /// Waits for the next task to finish; `None` when none is in flight. A failed task is an error.
    pub async fn next(&mut self) -> Result<Option<TaskResult>, ChildFailed> {
        while !self.unfinished.is_empty() {
            self.subscribe().await?;
            let Some(result) = self.streams.next().await else {
                // The agent ended the streams early: ask again for what is missing.
                self.unsubscribed = self.unfinished.iter().cloned().collect();
                tokio::time::sleep(SUBSCRIBE_PAUSE).await;
                continue;
            };
            let result = result?;
            if !self.unfinished.remove(&result.request_id) {
                continue;
            }
            if !result.succeeded {
                return Err(ChildFailed::Task {
                    request_id: result.request_id,
                    message: result.failure,
                });
            }
            return Ok(Some(result));
        }
        Ok(None)
    }

    /// Waits until all submitted tasks have succeeded.
    pub async fn finish(mut self) -> Result<(), ChildFailed> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    // One stream covers all that came since the last wait. When there are many streams they are joined into one:
    // whoever subscribes late to a finished task is answered at once, so nothing is lost.
    async fn subscribe(&mut self) -> Result<(), CallError> {
        if self.unsubscribed.is_empty() {
            return Ok(());
        }
        let mut request_ids = std::mem::take(&mut self.unsubscribed);
        if self.streams.len() == MAX_SUBSCRIPTION_STREAMS {
            self.streams = SelectAll::new();
            request_ids = self.unfinished.iter().cloned().collect();
        }
        self.streams
            .push(self.attempt.subscribe_tasks(request_ids).await?);
        Ok(())
    }
}
