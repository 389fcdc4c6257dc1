//! What SP1's controller and executor ask for, in the name of one attempt of the control lane.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, anyhow};
use prover_backend::protocol::{DeviceClass, TaskSubmission};
use prover_backend::{Attempt, TaskError};
use prover_sp1_engine::{Host, Settings};
use sp1_prover::worker::{ProofData, TaskId};
use sp1_prover_types::{ArtifactType, TaskStatus, TaskType};
use tokio::sync::mpsc;

use crate::failure::of_exit_code;
use crate::graph::{self, MemoryScale, Shape, Words, task_type};
use crate::nested;
use crate::order::InOrder;
use crate::store::Store;
use crate::watch::{Ended, Watch};

/// Name under which the controller leaves the proof: it stays in memory, and the root turns it into what users get.
pub const PROOF: &str = "proof-of-controller";

/// Name of the task that an executor sends messages of: its own.
pub const OWN: &str = "own";

/// First message of the channels of a root and of an execution. Whoever has sent one is not tried again in place: all that the
/// root submitted is dropped and a new plan begins, whose tasks the action cache answers as far as they were proved.
/// SP1's controller can't be resumed: it begins with new names, and joins of the old ones have deleted what it needs.
pub const BEGUN: &[u8] = b"begun";

/// Bytes of a length, as SP1 writes a program.
const LENGTH_BYTES: usize = 8;

/// What differs between jobs.
#[derive(Clone, Debug)]
pub struct JobTraits {
    /// As in `ProofJob.spec.proof.kind`.
    pub kind: String,
    /// Version of this backend: part of every cache key.
    pub version: String,
    /// Where the tasks of devices run.
    pub device_class: DeviceClass,
}

/// The host of one attempt.
pub struct ControlHost {
    store: Store,
    job: JobTraits,
    settings: Settings,
    watch: Watch,
    next: AtomicU64,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    /// SHA-256 of artifacts, as far as they have been seen.
    hashes: HashMap<String, String>,
    /// Names whose next upload needs room in the store.
    reserved: HashSet<String>,
    /// What stays in memory.
    kept: HashMap<String, Vec<u8>>,
    /// What [`Host::exists`] and downloads of the verifying key are about.
    verifying_key: Option<String>,
    /// The task that makes it, whose result it is.
    setup: Option<String>,
    /// Tasks that complete a marker, and the parts of the program that shards prove.
    marker_of: HashMap<String, String>,
    markers: HashSet<String>,
    ranges: HashMap<String, (u64, u64)>,
    /// Chunks that records name.
    nested: HashMap<String, Vec<String>>,
    /// Deferred outputs of shards.
    deferred: HashSet<String>,
    /// Shards that were announced.
    shards: HashSet<String>,
}

impl ControlHost {
    /// The host of an attempt, until its `Store` is over.
    pub fn new(store: Store, job: JobTraits, settings: Settings) -> Arc<Self> {
        let watch = Watch::start(store.attempt.clone(), store.failure.clone(), store.over.clone());
        let hashes = store.attempt.inputs().iter();
        let hashes = hashes
            .map(|input| (input.name.clone(), input.sha256.clone()))
            .collect();
        let known = Known {
            hashes,
            ..Known::default()
        };
        Arc::new(Self {
            store,
            job,
            settings,
            watch,
            next: AtomicU64::new(0),
            known: Arc::new(Mutex::new(known)),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attempt(&self) -> &Attempt {
        &self.store.attempt
    }

    /// What was uploaded under a name that stays in memory.
    pub fn take_kept(&self, name: &str) -> Option<Vec<u8>> {
        self.known().kept.remove(name)
    }

    /// Puts an artifact, and keeps it in memory for this attempt.
    pub async fn put_and_keep(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let info = self.store.put_packed(name, bytes.clone(), false).await?;
        let mut known = self.known();
        known.hashes.insert(name.to_owned(), info.sha256);
        known.kept.insert(name.to_owned(), bytes);
        Ok(())
    }

    /// Shards that the executor has announced.
    pub fn shards(&self) -> u64 {
        self.known().shards.len() as u64
    }

    /// The verifying key of the job's program, once it is known.
    pub fn verifying_key(&self) -> Option<Vec<u8>> {
        let known = self.known();
        known.kept.get(known.verifying_key.as_ref()?).cloned()
    }

    // Attempt ids are never used twice, so neither are names, whichever plan an attempt belongs to.
    fn fresh(&self, what: &str) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        format!("{what}-{}-{number}", self.attempt().id())
    }

    async fn hashes(&self, names: &[String]) -> Result<Vec<String>> {
        let mut hashes = Vec::with_capacity(names.len());
        for name in names {
            let found = self.known().hashes.get(name).cloned();
            let hash = match found {
                Some(hash) => hash,
                None => {
                    let what = format!("could not look up {name}");
                    let attempt = self.attempt();
                    let info = self.store.insist(&what, || attempt.stat_artifact(name)).await?;
                    match info {
                        Some(info) => info.sha256,
                        None => {
                            let message = format!("{name} is read by a task and is not there");
                            return self.store.fail(TaskError::artifact("NotFound", message)).await;
                        }
                    }
                }
            };
            self.known().hashes.insert(name.clone(), hash.clone());
            hashes.push(hash);
        }
        Ok(hashes)
    }

    async fn submission(
        &self,
        request_id: &str,
        shape: &Shape,
        inputs: Vec<String>,
        outputs: Vec<String>,
    ) -> Result<TaskSubmission> {
        let cache_key = if graph::cacheable(shape.name) {
            let hashes = self.hashes(&shape.artifacts).await?;
            graph::cache_key(
                &self.job.version,
                self.attempt().job_id(),
                shape,
                &inputs,
                &hashes,
            )
            .unwrap_or_default()
        } else {
            String::new()
        };
        let resources = graph::resources(
            shape.name,
            &self.job.kind,
            self.job.device_class,
            self.settings.executor_memory_bytes,
            MemoryScale::of(self.settings.element_threshold),
        );
        let words = Words { inputs, outputs };
        // A verifying key is small and travels as the task's result: it outlives its job in the action cache then.
        let outputs = match shape.name {
            task_type::SETUP => Vec::new(),
            _ => words.outputs.clone(),
        };
        Ok(TaskSubmission {
            request_id: request_id.to_owned(),
            task_type: shape.name.to_owned(),
            resources: Some(resources),
            inputs: shape.artifacts.clone(),
            outputs,
            parameters: serde_json::to_vec(&words)?,
            cache_key,
            ..TaskSubmission::default()
        })
    }

    // A chunk stays while a task that reads it has not ended, though SP1 gives up its reference before. One that is gone was
    // read by tasks that have all succeeded, in an earlier plan: the action cache answers for them.
    async fn submit_with_nested(&self, task: TaskSubmission) -> Result<bool> {
        let chunks = {
            let mut known = self.known();
            task.inputs.get(2).and_then(|record| known.nested.remove(record))
        };
        let Some(chunks) = chunks else {
            return self.submit_one(task).await;
        };
        let names: HashSet<String> = chunks.into_iter().collect();
        let mut whole = task.clone();
        // A group of a thousand shards' leftovers: those beyond the limit are read when the task runs.
        let room = prover_backend::limits::MAX_TASK_ARTIFACTS - whole.inputs.len();
        whole.inputs.extend(names.into_iter().take(room));
        whole.inputs[3..].sort_unstable();
        let what = format!("could not submit {}", task.request_id);
        let attempt = self.attempt();
        let answers = self
            .store
            .insist_or_none(&what, || attempt.submit_tasks(vec![whole.clone()]))
            .await?;
        match answers {
            Some(answers) => Ok(answers.first().is_some_and(|answer| answer.already_succeeded)),
            None => self.submit_one(task).await,
        }
    }

    async fn submit_one(&self, task: TaskSubmission) -> Result<bool> {
        let what = format!("could not submit {}", task.request_id);
        let attempt = self.attempt();
        // The same request id answers with the same task, so that it may be asked again.
        let answers = self
            .store
            .insist(&what, || attempt.submit_tasks(vec![task.clone()]))
            .await?;
        Ok(answers.first().is_some_and(|answer| answer.already_succeeded))
    }

    // What a shard that is still being proved has left already.
    async fn early(&self, deferred_output: &str) -> Result<Option<Vec<u8>>> {
        let name = nested::early(deferred_output);
        let what = format!("could not look up {name}");
        let attempt = self.attempt();
        match self.store.insist(&what, || attempt.stat_artifact(&name)).await? {
            Some(_) => Ok(Some(self.store.get_unpacked(&name).await?)),
            None => Ok(None),
        }
    }

    async fn complete_marker(&self, marker: &str) -> Result<()> {
        let what = format!("could not complete {marker}");
        let attempt = self.attempt();
        self.store.insist(&what, || attempt.complete_marker(marker)).await
    }
}

#[prover_backend::async_trait]
impl Host for ControlHost {
    fn create(&self) -> String {
        self.fresh("a")
    }

    async fn upload(&self, id: &str, kind: ArtifactType, bytes: Vec<u8>) -> Result<()> {
        if kind == ArtifactType::Proof && id == PROOF {
            self.known().kept.insert(id.to_owned(), bytes);
            return Ok(());
        }
        if self.attempt().outputs().iter().any(|output| output == id) {
            return self.store.write_output(id, bytes).await;
        }
        let reserve = self.known().reserved.remove(id);
        if reserve {
            // SP1 would prove it all before its verifier refuses it.
            let code = nested::exit_code_of_record(&bytes)?.unwrap_or_default();
            if let Some(error) = of_exit_code(code.into(), "") {
                return self.store.fail(error).await;
            }
            let chunks = nested::chunks_of_record(&bytes)?;
            if !chunks.is_empty() {
                self.known().nested.insert(id.to_owned(), chunks);
            }
        }
        let info = self.store.put_packed(id, bytes, reserve).await?;
        self.known().hashes.insert(id.to_owned(), info.sha256);
        Ok(())
    }

    async fn download(&self, id: &str, kind: ArtifactType) -> Result<Vec<u8>> {
        if kind == ArtifactType::Program {
            return Ok(as_program(&self.store.get(id).await?));
        }
        let kept = self.known().kept.get(id).cloned();
        if let Some(bytes) = kept {
            return Ok(bytes);
        }
        let deferred = self.known().deferred.contains(id);
        if deferred && let Some(bytes) = self.early(id).await? {
            return Ok(bytes);
        }
        let bytes = self.store.get_unpacked(id).await?;
        let mut known = self.known();
        if known.verifying_key.as_deref() == Some(id) {
            known.kept.insert(id.to_owned(), bytes.clone());
        }
        Ok(bytes)
    }

    async fn exists(&self, id: &str) -> Result<bool> {
        // An output that is written when the attempt ends is not there while it runs.
        if self.attempt().outputs().iter().any(|output| output == id) {
            return Ok(false);
        }
        let what = format!("could not look up {id}");
        let attempt = self.attempt();
        let found = self.store.insist(&what, || attempt.stat_artifact(id)).await?;
        Ok(found.is_some())
    }

    async fn delete(&self, ids: Vec<String>) -> Result<()> {
        let early = |id: &String| self.known().deferred.contains(id).then(|| nested::early(id));
        let names: Vec<String> = ids
            .into_iter()
            .filter(|id| id != PROOF)
            .flat_map(|id| [early(&id), Some(id)])
            .flatten()
            .collect();
        let attempt = self.attempt();
        // Unknown names are no error.
        self.store
            .insist_or_none("could not drop artifacts", || {
                attempt.delete_artifacts(names.clone())
            })
            .await?;
        Ok(())
    }

    fn reserve(&self, id: &str) {
        self.known().reserved.insert(id.to_owned());
    }

    async fn add_reference(&self, id: &str, reference: &str) -> Result<()> {
        let (attempt, reference) = (self.attempt(), nested::reference(reference));
        // A chunk whose shards were all proved by an earlier attempt is gone: the action cache answers those that are
        // submitted again, and nobody reads it any more.
        let found = self
            .store
            .insist_or_none("could not add a reference", || {
                attempt.add_reference(id, &reference)
            })
            .await?;
        if found.is_none() {
            tracing::debug!(id, reference, "nothing to refer to");
        }
        Ok(())
    }

    async fn remove_reference(&self, id: &str, reference: &str) -> Result<bool> {
        let (attempt, reference) = (self.attempt(), nested::reference(reference));
        let dropped = self
            .store
            .insist_or_none("could not remove a reference", || {
                attempt.remove_reference(id, &reference)
            })
            .await?;
        Ok(dropped.unwrap_or(false))
    }

    async fn submit(&self, kind: TaskType, inputs: Vec<String>, outputs: Vec<String>) -> Result<String> {
        if kind == TaskType::MarkerDeferredRecord {
            let request_id = self.fresh("marker");
            let task = TaskSubmission {
                request_id: request_id.clone(),
                marker: true,
                ..TaskSubmission::default()
            };
            self.submit_one(task).await?;
            self.known().markers.insert(request_id.clone());
            return Ok(request_id);
        }
        let shape = match graph::shape(kind, &inputs) {
            Ok(shape) => shape,
            Err(error) => {
                let error = TaskError::fatal("UnknownTask", error.to_string());
                return self.store.fail(error).await;
            }
        };
        let request_id = self.fresh(shape.name);
        if kind == TaskType::SetupVkey {
            let mut known = self.known();
            known.verifying_key = outputs.first().cloned();
            known.setup = Some(request_id.clone());
        }
        // What the execution must know of the job goes with SP1's own words.
        let inputs = match kind {
            TaskType::CoreExecute => inputs.into_iter().chain(self.job.to_words()).collect(),
            _ => inputs,
        };
        let task = self.submission(&request_id, &shape, inputs, outputs).await?;
        if let Some(marker) = &shape.marker {
            let mut known = self.known();
            known.marker_of.insert(request_id.clone(), marker.clone());
            known.deferred.extend(task.outputs.get(1).cloned());
        }
        let answered = self.submit_with_nested(task).await?;
        // The action cache has bound the outputs, but nobody proves the shard, who would complete its marker.
        if let (true, Some(marker)) = (answered, &shape.marker) {
            self.complete_marker(marker).await?;
        }
        Ok(request_id)
    }

    async fn complete(&self, task: &str) -> Result<()> {
        self.complete_marker(task).await
    }

    fn subscribe(
        &self,
        mut tasks: mpsc::UnboundedReceiver<TaskId>,
        results: mpsc::UnboundedSender<(TaskId, TaskStatus)>,
    ) {
        let (watch, known, over) = (self.watch.clone(), self.known.clone(), self.store.over.clone());
        tokio::spawn(async move {
            let follow = Following {
                results,
                known,
                order: InOrder::default(),
            };
            tokio::select! {
                () = over.cancelled() => {}
                () = follow.run(&mut tasks, &watch) => {}
            }
        });
    }

    async fn messages(&self, task: &str) -> Result<mpsc::UnboundedReceiver<Vec<u8>>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let (store, known, task) = (self.store.clone(), self.known.clone(), task.to_owned());
        tokio::spawn(async move {
            tokio::select! {
                () = store.over.cancelled() => {}
                _ = replay(&store, &known, &task, &sender) => {}
            }
        });
        Ok(receiver)
    }

    async fn send(&self, task: &str, payload: Vec<u8>) -> Result<()> {
        if task != OWN {
            return Err(anyhow!(
                "an executor sends messages of its own task only, not of {task}"
            ));
        }
        note_shard(&self.known, &payload);
        let attempt = self.attempt();
        self.store
            .insist("could not announce a shard", || {
                attempt.send_channel_message(None, payload.clone())
            })
            .await
    }
}

// A task's messages from the first to the last, though streams break. The sender is dropped at the end of the channel only:
// SP1 takes that for the end of all shards.
async fn replay(
    store: &Store,
    known: &Mutex<Known>,
    task: &str,
    sender: &mpsc::UnboundedSender<Vec<u8>>,
) -> Result<()> {
    use futures::StreamExt as _;
    let what = format!("could not read the messages of {task}");
    let mut offset = 0;
    loop {
        let mut messages = store
            .insist(&what, || store.attempt.read_channel(task, offset))
            .await?;
        while let Some(message) = messages.next().await {
            let message = match message {
                Ok(message) => message,
                Err(error) if error.retry() => break,
                Err(error) if error.ends_attempt() => std::future::pending().await,
                Err(error) => return store.fail(crate::failure::of_call(&what, error)).await,
            };
            if message.end_of_channel {
                return Ok(());
            }
            offset = message.offset + 1;
            if message.payload == BEGUN {
                continue;
            }
            note_shard(known, &message.payload);
            if sender.send(message.payload).is_err() {
                return Ok(());
            }
        }
    }
}

fn note_shard(known: &Mutex<Known>, payload: &[u8]) {
    let Ok(shard) = bincode::deserialize::<ProofData>(payload) else {
        return;
    };
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    let task = shard.task_id.to_string();
    if let Some(marker) = known.marker_of.get(&task).cloned() {
        known.ranges.insert(marker, shard.range.timestamp_range);
    }
    known.shards.insert(task);
}

/// One of SP1's subscribers.
struct Following {
    results: mpsc::UnboundedSender<(TaskId, TaskStatus)>,
    known: Arc<Mutex<Known>>,
    order: InOrder<Ended>,
}

impl Following {
    async fn run(mut self, tasks: &mut mpsc::UnboundedReceiver<TaskId>, watch: &Watch) {
        let (sender, mut answers) = mpsc::unbounded_channel();
        let (mut open, mut outstanding) = (true, 0_usize);
        while open || outstanding > 0 {
            tokio::select! {
                task = tasks.recv(), if open => match task {
                    Some(task) => {
                        outstanding += 1;
                        watch.follow(task.to_string(), sender.clone());
                    }
                    None => open = false,
                },
                Some(ended) = answers.recv(), if outstanding > 0 => {
                    outstanding -= 1;
                    self.answered(ended);
                }
                () = self.results.closed() => return,
            }
        }
        for ended in self.order.finish() {
            self.tell(ended);
        }
    }

    fn answered(&mut self, ended: Ended) {
        let range = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if ended.succeeded
                && known.setup.as_ref() == Some(&ended.task)
                && let Some(name) = known.verifying_key.clone()
            {
                known.kept.insert(name, ended.result.clone());
            }
            let marker = known.markers.contains(&ended.task);
            marker.then(|| known.ranges.get(&ended.task).copied()).flatten()
        };
        match range {
            Some((start, end)) if ended.succeeded => {
                for ended in self.order.push(start, end, ended) {
                    self.tell(ended);
                }
            }
            _ => self.tell(ended),
        }
    }

    fn tell(&self, ended: Ended) {
        let status = if ended.succeeded {
            TaskStatus::Succeeded
        } else {
            TaskStatus::FailedFatal
        };
        let _ = self.results.send((TaskId::new(ended.task), status));
    }
}

/// A program as SP1 reads it: its length, then its bytes.
#[must_use]
pub fn as_program(elf: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LENGTH_BYTES + elf.len());
    bytes.extend_from_slice(&(elf.len() as u64).to_le_bytes());
    bytes.extend_from_slice(elf);
    bytes
}

/// Whether a task of SP1 is run in the control lane.
#[must_use]
pub fn in_control_lane(name: &str) -> bool {
    matches!(name, task_type::CONTROL | task_type::EXECUTE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_what_sp1_reads() {
        let read: Vec<u8> = bincode::deserialize(&as_program(b"\x7fELF")).expect("decodes");
        assert_eq!(read, b"\x7fELF");
    }
}
