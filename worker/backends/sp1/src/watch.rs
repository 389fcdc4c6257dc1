//! Following tasks: one answer for each, though streams break.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll};
use prover_backend::protocol::TaskResult;
use prover_backend::{Attempt, CallError, CancellationToken};
use tokio::sync::mpsc;

use crate::failure::{Failure, of_call};

/// Subscriptions of one attempt before they are joined into one.
const MAX_STREAMS: usize = 8;

/// Pause before a subscription that broke is made again.
const PAUSE: Duration = Duration::from_millis(500);

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its request id.
    pub task: String,
    /// Whether it has its result.
    pub succeeded: bool,
    /// What it told besides its artifacts.
    pub result: Vec<u8>,
}

/// Asks for the end of tasks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Watch {
    wanted: mpsc::UnboundedSender<(String, mpsc::UnboundedSender<Ended>)>,
}

impl Watch {
    /// Begins to follow tasks in the name of an attempt, until `over`.
    pub fn start(attempt: Attempt, failure: std::sync::Arc<Failure>, over: CancellationToken) -> Self {
        let (wanted, requests) = mpsc::unbounded_channel();
        let follower = Follower {
            attempt,
            waiting: HashMap::new(),
            streams: SelectAll::new(),
        };
        tokio::spawn(async move {
            tokio::select! {
                () = over.cancelled() => {}
                Err(error) = follower.run(requests) => failure.set(of_call("could not follow tasks", error)),
            }
        });
        Self { wanted }
    }

    /// The end of a task is sent to `answers`, at once where it has ended already.
    pub fn follow(&self, task: String, answers: mpsc::UnboundedSender<Ended>) {
        // Once nobody follows any more the attempt is over.
        let _ = self.wanted.send((task, answers));
    }
}

struct Follower {
    attempt: Attempt,
    waiting: HashMap<String, Vec<mpsc::UnboundedSender<Ended>>>,
    streams: SelectAll<BoxStream<'static, Event>>,
}

enum Event {
    Ended(TaskResult),
    Broken(CallError),
    // A stream ended; what it has not answered is asked for again.
    Finished,
}

impl Follower {
    async fn run(
        mut self,
        mut requests: mpsc::UnboundedReceiver<(String, mpsc::UnboundedSender<Ended>)>,
    ) -> Result<(), CallError> {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                count = requests.recv_many(&mut batch, prover_backend::limits::MAX_SUBSCRIBED_TASKS) => {
                    if count == 0 {
                        return std::future::pending().await;
                    }
                    let mut new = Vec::new();
                    for (task, answers) in batch.drain(..) {
                        let followers = self.waiting.entry(task.clone()).or_default();
                        // One stream follows it already.
                        if followers.is_empty() {
                            new.push(task);
                        }
                        followers.push(answers);
                    }
                    if self.streams.len() >= MAX_STREAMS {
                        self.again().await?;
                    } else if !new.is_empty() {
                        self.subscribe(new).await?;
                    }
                }
                Some(event) = self.streams.next() => match event {
                    Event::Ended(result) => {
                        for follower in self.waiting.remove(&result.request_id).into_iter().flatten() {
                            let _ = follower.send(Ended {
                                task: result.request_id.clone(),
                                succeeded: result.succeeded,
                                result: result.result.clone(),
                            });
                        }
                    }
                    Event::Broken(error) if !error.retry() => return Err(error),
                    Event::Broken(error) => {
                        tracing::info!(%error, "a subscription broke: it is made again");
                        tokio::time::sleep(PAUSE).await;
                        self.again().await?;
                    }
                    Event::Finished if self.streams.is_empty() && !self.waiting.is_empty() => self.again().await?,
                    Event::Finished => {}
                },
            }
        }
    }

    // All that was not answered, in as few streams as there can be.
    async fn again(&mut self) -> Result<(), CallError> {
        self.streams.clear();
        let all: Vec<String> = self.waiting.keys().cloned().collect();
        for tasks in all.chunks(prover_backend::limits::MAX_SUBSCRIBED_TASKS) {
            self.subscribe(tasks.to_vec()).await?;
        }
        Ok(())
    }

    async fn subscribe(&mut self, tasks: Vec<String>) -> Result<(), CallError> {
        let stream = loop {
            match self.attempt.subscribe_tasks(tasks.clone()).await {
                Ok(stream) => break stream,
                Err(error) if error.retry() => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(error),
            }
        };
        let events = stream.map(|item| match item {
            Ok(result) => Event::Ended(result),
            Err(error) => Event::Broken(error),
        });
        self.streams.push(
            events
                .chain(futures::stream::once(async { Event::Finished }))
                .boxed(),
        );
        Ok(())
    }
}
