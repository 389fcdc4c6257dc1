//! SP1's two interfaces to the outside, turned into one that can be a trait object.

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use sp1_prover::worker::{ProofId, RawTaskRequest, SubscriberBuilder, TaskId, TaskMetadata, WorkerClient};
use sp1_prover_types::{
    Artifact, ArtifactBatch, ArtifactClient, ArtifactId, ArtifactType, ProofRequestStatus, ShardPermit,
    TaskStatus, TaskType,
};
use tokio::sync::mpsc;

/// What SP1's components ask of whoever runs them. An error is told to SP1 as fatal, whatever it was: whoever implements this
/// tries again by itself and remembers what was wrong.
#[async_trait]
pub trait Host: Send + Sync + 'static {
    /// A name that was never used before.
    fn create(&self) -> String;

    /// Keeps bytes under a name.
    async fn upload(&self, id: &str, kind: ArtifactType, bytes: Vec<u8>) -> Result<()>;

    /// The bytes of a name.
    async fn download(&self, id: &str, kind: ArtifactType) -> Result<Vec<u8>>;

    /// Whether a name has bytes.
    async fn exists(&self, id: &str) -> Result<bool>;

    /// Drops names.
    async fn delete(&self, ids: Vec<String>) -> Result<()>;

    /// The bytes that are uploaded under this name next are a shard's record, for which the store must have room.
    fn reserve(&self, id: &str);

    /// Keeps an artifact until the reference is removed.
    async fn add_reference(&self, id: &str, reference: &str) -> Result<()>;

    /// Answers whether the artifact was dropped with its last reference.
    async fn remove_reference(&self, id: &str, reference: &str) -> Result<bool>;

    /// Answers with the task's identity once the task can't be forgotten any more.
    async fn submit(&self, kind: TaskType, inputs: Vec<String>, outputs: Vec<String>) -> Result<String>;

    /// Completes a task that no worker runs. More than once is no error.
    async fn complete(&self, task: &str) -> Result<()>;

    /// Answers for each task that comes, once, with how it ended; drops `results` when `tasks` has ended and all are
    /// answered.
    fn subscribe(
        &self,
        tasks: mpsc::UnboundedReceiver<TaskId>,
        results: mpsc::UnboundedSender<(TaskId, TaskStatus)>,
    );

    /// All messages of a task, from the first one; ends when the task has ended.
    async fn messages(&self, task: &str) -> Result<mpsc::UnboundedReceiver<Vec<u8>>>;

    /// Appends a message to those of a task.
    async fn send(&self, task: &str, payload: Vec<u8>) -> Result<()>;
}

/// A host as SP1 takes it, for artifacts and for tasks.
#[derive(Clone)]
pub struct Client(Arc<dyn Host>);

impl Client {
    /// The client of a host.
    pub fn new(host: Arc<dyn Host>) -> Self {
        Self(host)
    }
}

impl ArtifactClient for Client {
    async fn upload_raw(&self, artifact: &impl ArtifactId, kind: ArtifactType, data: Vec<u8>) -> Result<()> {
        self.0.upload(artifact.id(), kind, data).await
    }

    async fn download_raw(&self, artifact: &impl ArtifactId, kind: ArtifactType) -> Result<Vec<u8>> {
        self.0.download(artifact.id(), kind).await
    }

    async fn exists(&self, artifact: &impl ArtifactId, _kind: ArtifactType) -> Result<bool> {
        self.0.exists(artifact.id()).await
    }

    async fn delete(&self, artifact: &impl ArtifactId, _kind: ArtifactType) -> Result<()> {
        self.0.delete(vec![artifact.id().to_owned()]).await
    }

    async fn delete_batch(&self, artifacts: &[impl ArtifactId], _kind: ArtifactType) -> Result<()> {
        let ids = artifacts
            .iter()
            .map(|artifact| artifact.id().to_owned())
            .collect();
        self.0.delete(ids).await
    }

    // The size is known at the upload only, so the host waits for room there. It is given back when the task that reads
    // the record has ended, whatever becomes of this process.
    async fn acquire_shard_permit(&self, artifact: &impl ArtifactId) -> ShardPermit {
        self.0.reserve(artifact.id());
        ShardPermit::noop()
    }

    fn create_artifact(&self) -> Result<Artifact> {
        Ok(Artifact(self.0.create()))
    }

    fn create_artifacts(&self, count: usize) -> Result<ArtifactBatch> {
        let artifacts: Vec<_> = (0..count).map(|_| Artifact(self.0.create())).collect();
        Ok(artifacts.into())
    }

    async fn add_ref(&self, artifact: &impl ArtifactId, reference: &str) -> Result<()> {
        self.0.add_reference(artifact.id(), reference).await
    }

    async fn remove_ref(
        &self,
        artifact: &impl ArtifactId,
        _kind: ArtifactType,
        reference: &str,
    ) -> Result<bool> {
        self.0.remove_reference(artifact.id(), reference).await
    }
}

impl WorkerClient for Client {
    async fn submit_task(&self, kind: TaskType, task: RawTaskRequest) -> Result<TaskId> {
        let names = |artifacts: Vec<Artifact>| artifacts.into_iter().map(Artifact::to_id).collect();
        let id = self
            .0
            .submit(kind, names(task.inputs), names(task.outputs))
            .await?;
        Ok(TaskId::new(id))
    }

    async fn complete_task(&self, _proof: ProofId, task: TaskId, _metadata: TaskMetadata) -> Result<()> {
        self.0.complete(&task.to_string()).await
    }

    // The runner of the controller tells how the proof ended; nothing of SP1's calls this in a worker.
    async fn complete_proof(
        &self,
        _proof: ProofId,
        _task: Option<TaskId>,
        _status: ProofRequestStatus,
        _extra_data: impl Into<String> + Send,
    ) -> Result<()> {
        Ok(())
    }

    async fn subscriber(&self, _proof: ProofId) -> Result<SubscriberBuilder<Self>> {
        let (tasks, wanted) = mpsc::unbounded_channel();
        let (results, answers) = mpsc::unbounded_channel();
        self.0.subscribe(wanted, results);
        Ok(SubscriberBuilder::new(self.clone(), tasks, answers))
    }

    async fn subscribe_task_messages(&self, task: &TaskId) -> Result<mpsc::UnboundedReceiver<Vec<u8>>> {
        self.0.messages(&task.to_string()).await
    }

    async fn send_task_message(&self, task: &TaskId, payload: Vec<u8>) -> Result<()> {
        self.0.send(&task.to_string(), payload).await
    }
}
