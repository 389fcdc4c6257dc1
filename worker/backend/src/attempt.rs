//! What a running attempt has and can do. Every call ends at once when the attempt is stopped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt, stream::BoxStream};
use prost::Message;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{CallError, TaskError};
use crate::limits::{MAX_SUBMISSION_BYTES, MAX_SUBSCRIBED_TASKS};
use crate::protocol::agent_service_client::AgentServiceClient;
use crate::protocol::{
    AcquirePermitRequest, ArtifactInfo, AttemptProgress, BackendDescription, BackendEvent, ChannelMessage,
    CompleteMarkerRequest, DeleteArtifactsRequest, Device, ExecutionReport, GetArtifactRequest, InputFile,
    JobPlan, ProofReport, PutArtifactRequest, ReadChannelRequest, ReferenceRequest, RunAttempt,
    SendChannelMessageRequest, StatArtifactRequest, SubmitTasksRequest, SubscribeTasksRequest, TaskResult,
    TaskSubmission,
};
use crate::validate;

/// The stub of the agent as the SDK uses it.
pub(crate) type AgentClient = AgentServiceClient<tonic::transport::Channel>;

/// What an attempt leaves behind at its good end.
#[derive(Clone, Debug, Default)]
pub struct Completed {
    /// Files of declared outputs that lie elsewhere than at [`Attempt::output_path`]. Mostly empty.
    pub outputs: BTreeMap<String, PathBuf>,
    /// Opaque to all but the backend, at most 64 KiB: handed to the tasks that depend on this one.
    pub result: Vec<u8>,
    /// What executing the program told.
    pub execution: Option<ExecutionReport>,
    /// Only from a verifying task, and always from it.
    pub proof: Option<ProofReport>,
    /// Time on the device, without waiting for files.
    pub device_time: Duration,
}

/// One try of a task. Cheap to clone; all clones stand for the same attempt.
#[derive(Clone)]
pub struct Attempt {
    inner: Arc<Inner>,
}

struct Inner {
    run: RunAttempt,
    device: Device,
    description: Arc<BackendDescription>,
    client: AgentClient,
    events: mpsc::Sender<BackendEvent>,
    cancellation: CancellationToken,
    blocking: TaskTracker,
}

/// The agent's answer to one submitted task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubmittedTask {
    /// Its identity in the coordinator, for logs.
    pub task_id: u64,
    /// It existed already and has succeeded: its outputs need not be made again.
    pub already_succeeded: bool,
}

impl Attempt {
    pub(crate) fn new(
        run: RunAttempt,
        device: Device,
        description: Arc<BackendDescription>,
        client: AgentClient,
        events: mpsc::Sender<BackendEvent>,
    ) -> Self {
        let (cancellation, blocking) = (CancellationToken::new(), TaskTracker::new());
        Self {
            inner: Arc::new(Inner {
                run,
                device,
                description,
                client,
                events,
                cancellation,
                blocking,
            }),
        }
    }

    pub(crate) fn blocking_sections(&self) -> &TaskTracker {
        &self.inner.blocking
    }

    /// Its lease. Never used twice.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.inner.run.attempt_id
    }

    /// The job that it belongs to.
    #[must_use]
    pub fn job_id(&self) -> &str {
        &self.inner.run.job_id
    }

    /// Which task is to be run, as declared in the description.
    #[must_use]
    pub fn task_type(&self) -> &str {
        &self.inner.run.task_type
    }

    /// Counted from 1 within the task; 0 where the agent does not tell.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.inner.run.attempt_number
    }

    /// Where inputs lie and outputs are written. It is removed after the attempt.
    #[must_use]
    pub fn directory(&self) -> &Path {
        Path::new(&self.inner.run.directory)
    }

    /// The fetched inputs.
    #[must_use]
    pub fn inputs(&self) -> &[InputFile] {
        &self.inner.run.inputs
    }

    /// Names of the files that must be there at the end.
    #[must_use]
    pub fn outputs(&self) -> &[String] {
        &self.inner.run.outputs
    }

    /// As submitted.
    #[must_use]
    pub fn parameters(&self) -> &[u8] {
        &self.inner.run.parameters
    }

    /// The job; only for a root task.
    #[must_use]
    pub fn plan(&self) -> Option<&JobPlan> {
        self.inner.run.plan.as_ref()
    }

    /// The job, for a task type that is only ever a root.
    pub fn require_plan(&self) -> Result<&JobPlan, TaskError> {
        self.plan().ok_or_else(|| {
            TaskError::fatal(
                "PlanMissing",
                format!("task type {} plans a job and got none", self.task_type()),
            )
        })
    }

    /// Results of the tasks that this one depends on, in the order of `depends_on`.
    #[must_use]
    pub fn dependency_results(&self) -> &[Vec<u8>] {
        &self.inner.run.dependency_results
    }

    /// The device of this process.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// Cancelled when the attempt must end. Long loops in [`Attempt::blocking`] should look at it.
    #[must_use]
    pub fn cancellation(&self) -> &CancellationToken {
        &self.inner.cancellation
    }

    /// An error to return from a loop that saw the cancellation.
    pub fn check_stopped(&self) -> Result<(), TaskError> {
        if self.inner.cancellation.is_cancelled() {
            Err(CallError::Stopped.into())
        } else {
            Ok(())
        }
    }

    /// The file of a fetched input.
    pub fn input_path(&self, name: &str) -> Result<&Path, TaskError> {
        self.inner
            .run
            .input(name)
            .map(|input| Path::new(&input.path))
            .ok_or_else(|| {
                TaskError::fatal(
                    "InputMissing",
                    format!("task type {} has no input {name:?}", self.task_type()),
                )
            })
    }

    /// The bytes of a fetched input.
    pub async fn read_input(&self, name: &str) -> Result<Vec<u8>, TaskError> {
        let path = self.input_path(name)?;
        tokio::fs::read(path)
            .await
            .map_err(|error| TaskError::file("read an input", path, &error))
    }

    /// Where to write a declared output, or any other file that is given to [`Attempt::put_artifact`].
    #[must_use]
    pub fn output_path(&self, name: &str) -> PathBuf {
        self.directory().join(OUTPUT_FOLDER).join(name)
    }

    /// Writes a file at [`Attempt::output_path`].
    pub async fn write_output(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, TaskError> {
        let path = self.output_path(name);
        match tokio::fs::write(&path, bytes).await {
            Ok(()) => Ok(path),
            Err(error) => Err(TaskError::file("write an output", &path, &error)),
        }
    }

    /// Runs work that keeps a core busy, on a thread where it may block. A stopped attempt waits for it to end.
    /// Inside it, `tokio::runtime::Handle::current().block_on(...)` may be used for calls of the attempt.
    pub async fn blocking<T, F>(&self, work: F) -> T
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let span = tracing::Span::current();
        let section = self.inner.blocking.spawn_blocking(move || span.in_scope(work));
        match section.await {
            Ok(value) => value,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Only a runtime that shuts down cancels a blocking section, and then nobody waits for the answer.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Submits tasks of the same job and answers in their order. Safe to repeat: the same request id answers with
    /// the same task. What is too large for one message is split.
    pub async fn submit_tasks(&self, tasks: Vec<TaskSubmission>) -> Result<Vec<SubmittedTask>, CallError> {
        let mut answers = Vec::with_capacity(tasks.len());
        for batch in split_submission(tasks) {
            let count = batch.len();
            let request = SubmitTasksRequest {
                attempt_id: self.id(),
                tasks: batch,
            };
            self.check(validate::submit_tasks(&self.inner.description, &request))?;
            let mut client = self.inner.client.clone();
            let answer = self.call(client.submit_tasks(request)).await?;
            if answer.task_ids.len() != count || answer.already_succeeded.len() != count {
                return Err(CallError::Internal(format!(
                    "{count} tasks were submitted, but the agent answered others"
                )));
            }
            let pairs = answer.task_ids.into_iter().zip(answer.already_succeeded);
            answers.extend(pairs.map(|(task_id, already_succeeded)| SubmittedTask {
                task_id,
                already_succeeded,
            }));
        }
        Ok(answers)
    }

    /// Completes a marker. Completing it more than once is no error.
    pub async fn complete_marker(&self, request_id: &str) -> Result<(), CallError> {
        let request = CompleteMarkerRequest {
            attempt_id: self.id(),
            request_id: request_id.to_owned(),
        };
        let mut client = self.inner.client.clone();
        self.call(client.complete_marker(request)).await.map(drop)
    }

    /// Follows tasks: one answer for each as it becomes terminal, at once for one that is already.
    pub async fn subscribe_tasks(&self, request_ids: Vec<String>) -> Result<TaskResults, CallError> {
        if request_ids.len() > MAX_SUBSCRIBED_TASKS {
            return Err(CallError::LimitExceeded(format!(
                "a subscription to {} tasks: at most {MAX_SUBSCRIBED_TASKS}",
                request_ids.len()
            )));
        }
        let request = SubscribeTasksRequest {
            attempt_id: self.id(),
            request_ids,
        };
        let mut client = self.inner.client.clone();
        Ok(TaskResults(
            self.follow(self.call(client.subscribe_tasks(request)).await?),
        ))
    }

    /// Appends a message to a channel; `None` is the channel of this attempt's own task.
    pub async fn send_channel_message(
        &self,
        request_id: Option<&str>,
        payload: Vec<u8>,
    ) -> Result<(), CallError> {
        self.check(validate::opaque("channel message", &payload))?;
        let request_id = request_id.unwrap_or_default().to_owned();
        let request = SendChannelMessageRequest {
            attempt_id: self.id(),
            request_id,
            payload,
        };
        let mut client = self.inner.client.clone();
        self.call(client.send_channel_message(request)).await.map(drop)
    }

    /// Replays the channel of a task from an offset and follows it until the task is terminal.
    pub async fn read_channel(
        &self,
        request_id: &str,
        start_offset: u64,
    ) -> Result<ChannelMessages, CallError> {
        let request = ReadChannelRequest {
            attempt_id: self.id(),
            request_id: request_id.to_owned(),
            start_offset,
        };
        let mut client = self.inner.client.clone();
        Ok(ChannelMessages(
            self.follow(self.call(client.read_channel(request)).await?),
        ))
    }

    /// Uploads a file of the attempt's directory and binds the name to it. The first binding of a name wins: the
    /// answer tells what the name is bound to.
    pub async fn put_artifact(&self, name: &str, path: &Path) -> Result<ArtifactInfo, CallError> {
        self.check(validate::name("artifact", name))?;
        self.check(validate::file_inside(self.directory(), name, path))?;
        let path = path
            .to_str()
            .ok_or_else(|| CallError::InvalidArgument(format!("{} is not UTF-8", path.display())))?;
        let request = PutArtifactRequest {
            attempt_id: self.id(),
            name: name.to_owned(),
            path: path.to_owned(),
        };
        let mut client = self.inner.client.clone();
        self.call(client.put_artifact(request)).await
    }

    /// Downloads an artifact into the attempt's directory.
    pub async fn get_artifact(&self, name: &str) -> Result<(PathBuf, ArtifactInfo), CallError> {
        let request = GetArtifactRequest {
            attempt_id: self.id(),
            name: name.to_owned(),
        };
        let mut client = self.inner.client.clone();
        let answer = self.call(client.get_artifact(request)).await?;
        Ok((PathBuf::from(answer.path), answer.info.unwrap_or_default()))
    }

    /// What a name is bound to; `None` where it is not bound.
    pub async fn stat_artifact(&self, name: &str) -> Result<Option<ArtifactInfo>, CallError> {
        let request = StatArtifactRequest {
            attempt_id: self.id(),
            name: name.to_owned(),
        };
        let mut client = self.inner.client.clone();
        match self.call(client.stat_artifact(request)).await {
            Ok(info) => Ok(Some(info)),
            Err(CallError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Drops names. The bytes stay while the action cache or the log need them.
    pub async fn delete_artifacts(&self, names: Vec<String>) -> Result<(), CallError> {
        let request = DeleteArtifactsRequest {
            attempt_id: self.id(),
            names,
        };
        let mut client = self.inner.client.clone();
        self.call(client.delete_artifacts(request)).await.map(drop)
    }

    /// Adds a named reference, which keeps the artifact until it is removed.
    pub async fn add_reference(&self, name: &str, reference: &str) -> Result<(), CallError> {
        let request = self.reference(name, reference)?;
        let mut client = self.inner.client.clone();
        self.call(client.add_reference(request)).await.map(drop)
    }

    /// Removes a named reference; answers whether the artifact was dropped with it.
    pub async fn remove_reference(&self, name: &str, reference: &str) -> Result<bool, CallError> {
        let request = self.reference(name, reference)?;
        let mut client = self.inner.client.clone();
        self.call(client.remove_reference(request))
            .await
            .map(|answer| answer.dropped)
    }

    fn reference(&self, name: &str, reference: &str) -> Result<ReferenceRequest, CallError> {
        self.check(validate::name("reference", reference))?;
        Ok(ReferenceRequest {
            attempt_id: self.id(),
            name: name.to_owned(),
            reference: reference.to_owned(),
        })
    }

    /// Waits until the store may take so many bytes more for this artifact.
    pub async fn acquire_permit(&self, name: &str, bytes: u64) -> Result<(), CallError> {
        let request = AcquirePermitRequest {
            attempt_id: self.id(),
            name: name.to_owned(),
            bytes,
        };
        let mut client = self.inner.client.clone();
        self.call(client.acquire_permit(request)).await.map(drop)
    }

    /// Tells how far the attempt is: a fraction from 0 to 1 where it is known, and what is known of the execution.
    pub async fn report_progress(&self, fraction: Option<f64>, execution: Option<ExecutionReport>) {
        let fraction = fraction.map_or(-1.0, |fraction| fraction.clamp(0.0, 1.0));
        let progress = AttemptProgress {
            attempt_id: self.id(),
            execution,
            fraction,
        };
        // A closed queue means that the agent is gone, which ends the process anyhow.
        let _ = self.inner.events.send(progress.into()).await;
    }

    fn check<T>(&self, validated: Result<T, validate::ValidationError>) -> Result<T, CallError> {
        validated.map_err(|error| CallError::InvalidArgument(format!("task {}: {error}", self.task_type())))
    }

    async fn call<T>(
        &self,
        answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, CallError> {
        let answer = tokio::select! {
            biased;
            () = self.inner.cancellation.cancelled() => return Err(CallError::Stopped),
            answer = answer => answer,
        };
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| self.refused(status))
    }

    // A lost lease ends the whole attempt, whatever the backend makes of the error.
    fn refused(&self, status: tonic::Status) -> CallError {
        let error = CallError::from(status);
        if error.ends_attempt() {
            tracing::info!(attempt = self.id(), %error, "the attempt ends");
            self.inner.cancellation.cancel();
        }
        error
    }

    fn follow<T: Send + 'static>(
        &self,
        stream: tonic::Streaming<T>,
    ) -> BoxStream<'static, Result<T, CallError>> {
        let start = Some((self.clone(), stream));
        futures::stream::unfold(start, |state| async move {
            let (attempt, mut stream) = state?;
            let item = tokio::select! {
                biased;
                () = attempt.inner.cancellation.cancelled() => Some(Err(CallError::Stopped)),
                item = stream.next() => item.map(|item| item.map_err(|status| attempt.refused(status))),
            };
            match item {
                Some(Ok(item)) => Some((Ok(item), Some((attempt, stream)))),
                // Nothing follows an error.
                Some(Err(error)) => Some((Err(error), None)),
                None => None,
            }
        })
        .boxed()
    }
}

/// Folder below the attempt's directory where the SDK puts outputs.
pub(crate) const OUTPUT_FOLDER: &str = "outputs";

fn split_submission(tasks: Vec<TaskSubmission>) -> Vec<Vec<TaskSubmission>> {
    // Key and length of each element, and the request's own field, with room to spare.
    const OVERHEAD_BYTES: usize = 64;
    let mut batches = Vec::new();
    let mut batch = Vec::new();
    let mut bytes = OVERHEAD_BYTES;
    for task in tasks {
        let size = task.encoded_len() + OVERHEAD_BYTES;
        if !batch.is_empty() && bytes + size > MAX_SUBMISSION_BYTES {
            batches.push(std::mem::take(&mut batch));
            bytes = OVERHEAD_BYTES;
        }
        bytes += size;
        batch.push(task);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

/// Answers to a subscription. It ends when every task was answered.
pub struct TaskResults(BoxStream<'static, Result<TaskResult, CallError>>);

impl Stream for TaskResults {
    type Item = Result<TaskResult, CallError>;
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

/// Messages of a channel. It ends after the message that says `end_of_channel`.
pub struct ChannelMessages(BoxStream<'static, Result<ChannelMessage, CallError>>);

impl Stream for ChannelMessages {
    type Item = Result<ChannelMessage, CallError>;
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}
