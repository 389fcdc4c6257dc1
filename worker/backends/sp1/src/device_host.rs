//! What SP1's prover asks for, in the name of whichever attempt it works for.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, anyhow};
use prover_backend::TaskError;
use prover_sp1_engine::Host;
use sha2::{Digest as _, Sha256};
use sp1_prover::worker::TaskId;
use sp1_prover_types::{ArtifactType, TaskStatus, TaskType};
use tokio::sync::mpsc;

use crate::control_host::as_program;
use crate::graph::{Words, task_type};
use crate::nested;
use crate::route::{self, Routed};
use crate::store::Store;

/// Programs whose verifying keys are remembered.
const MOST_KEYS: usize = 64;

/// One attempt of this device.
#[derive(Clone)]
struct Guest {
    store: Store,
    words: Arc<Words>,
}

impl Guest {
    fn task_type(&self) -> &str {
        self.store.attempt.task_type()
    }

    fn is_record(&self, name: &str) -> bool {
        self.task_type() == task_type::SHARD && self.words.inputs.get(2).is_some_and(|record| record == name)
    }

    fn is_deferred_output(&self, name: &str) -> bool {
        self.task_type() == task_type::SHARD && self.words.outputs.get(1).is_some_and(|output| output == name)
    }
}

/// The host of a prover.
#[derive(Default)]
pub struct DeviceHost {
    guests: Mutex<HashMap<u64, Guest>>,
    /// Chunks of events until the artifact that names them says whose they are.
    chunks: Mutex<HashMap<String, Vec<u8>>>,
    next: AtomicU64,
    /// Verifying keys that were made here, by the SHA-256 of their program.
    keys: Mutex<HashMap<[u8; 32], Vec<u8>>>,
    /// What attempts tell besides their artifacts.
    results: Mutex<HashMap<u64, Vec<u8>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An attempt as long as SP1 works for it.
pub struct Admitted {
    host: Arc<DeviceHost>,
    attempt: u64,
    /// What went wrong, and the calls of the attempt.
    pub store: Store,
    /// The names as SP1 is given them.
    pub words: Words,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.store.over.cancel();
        let mut guests = lock(&self.host.guests);
        guests.remove(&self.attempt);
        lock(&self.host.results).remove(&self.attempt);
        // Nobody is left who could name them.
        if guests.is_empty() {
            lock(&self.host.chunks).clear();
        }
    }
}

impl DeviceHost {
    /// Lets SP1 work for an attempt.
    pub fn admit(self: &Arc<Self>, store: Store, words: Words) -> Admitted {
        let attempt = store.attempt.id();
        let of_attempt = |names: &[String]| {
            names
                .iter()
                .map(|name| route::routed(attempt, name))
                .collect::<Vec<_>>()
        };
        // Words that are no names of ours stay as they are: ranges, and whether a join is the last one.
        let inputs = match store.attempt.task_type() {
            task_type::REDUCE => words
                .inputs
                .iter()
                .enumerate()
                .map(|(at, word)| match at {
                    at if at >= 3 && at % 2 == 1 => route::routed(attempt, word),
                    _ => word.clone(),
                })
                .collect(),
            _ => of_attempt(&words.inputs),
        };
        let given = Words {
            inputs,
            outputs: of_attempt(&words.outputs),
        };
        let guest = Guest {
            store: store.clone(),
            words: Arc::new(words),
        };
        lock(&self.guests).insert(attempt, guest);
        Admitted {
            host: self.clone(),
            attempt,
            store,
            words: given,
        }
    }

    /// What an attempt tells besides its artifacts.
    pub fn take_result(&self, attempt: u64) -> Vec<u8> {
        lock(&self.results).remove(&attempt).unwrap_or_default()
    }

    /// The verifying key of a program, if it was made here.
    pub fn key_of(&self, program: &[u8]) -> Option<Vec<u8>> {
        let digest: [u8; 32] = Sha256::digest(program).into();
        lock(&self.keys).get(&digest).cloned()
    }

    /// Remembers a verifying key that was made here from these bytes.
    pub fn remember_key(&self, program: &[u8], key: Vec<u8>) {
        let mut keys = lock(&self.keys);
        if keys.len() >= MOST_KEYS {
            keys.clear();
        }
        keys.insert(Sha256::digest(program).into(), key);
    }

    fn guest<'a>(&self, id: &'a str) -> Result<(Guest, &'a str)> {
        let Some(Routed { attempt, name }) = route::parse(id) else {
            return Err(anyhow!("{id} is nobody's name"));
        };
        let guest = lock(&self.guests).get(&attempt).cloned();
        let guest = guest.ok_or_else(|| anyhow!("attempt {attempt}, whose {name} is, is over"))?;
        Ok((guest, name))
    }

    // The chunks go first: whoever reads the names may read the chunks at once.
    async fn put_deferred(&self, guest: &Guest, name: &str, bytes: &[u8]) -> Result<()> {
        let mut names = BTreeMap::new();
        for id in nested::chunks_of_deferred(bytes)? {
            let Some(chunk) = lock(&self.chunks).remove(&id) else {
                let message = format!("the deferred events of {name} name {id}, which was not made here");
                return guest
                    .store
                    .fail(TaskError::retryable("ChunkMissing", message))
                    .await;
            };
            let content = nested::chunk_name(&chunk);
            guest.store.put_packed(&content, chunk, false).await?;
            names.insert(id, content);
        }
        let bytes = nested::rename_in_deferred(bytes, &names)?;
        let packed = guest.store.pack(bytes).await?;
        // The executor reads it as soon as the marker is complete, long before this attempt ends and binds its outputs.
        guest.store.put(&nested::early(name), &packed).await?;
        match guest.store.attempt.write_output(name, &packed).await {
            Ok(_) => Ok(()),
            Err(error) => guest.store.fail(error).await,
        }
    }
}

#[prover_backend::async_trait]
impl Host for DeviceHost {
    // Only chunks of deferred events are named by the prover itself.
    fn create(&self) -> String {
        format!("chunk-{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    async fn upload(&self, id: &str, _kind: ArtifactType, bytes: Vec<u8>) -> Result<()> {
        if route::parse(id).is_none() {
            lock(&self.chunks).insert(id.to_owned(), bytes);
            return Ok(());
        }
        let (guest, name) = self.guest(id)?;
        if guest.is_deferred_output(name) {
            return self.put_deferred(&guest, name, &bytes).await;
        }
        if guest.task_type() == task_type::SETUP {
            let program = match guest.words.inputs.first() {
                Some(program) => guest.store.get(program).await?,
                None => Vec::new(),
            };
            self.remember_key(&program, bytes.clone());
            lock(&self.results).insert(guest.store.attempt.id(), bytes);
            return Ok(());
        }
        guest.store.write_output(name, bytes).await
    }

    async fn download(&self, id: &str, kind: ArtifactType) -> Result<Vec<u8>> {
        let (guest, name) = self.guest(id)?;
        if kind == ArtifactType::Program {
            return Ok(as_program(&guest.store.get(name).await?));
        }
        let bytes = guest.store.get_unpacked(name).await?;
        if !guest.is_record(name) {
            return Ok(bytes);
        }
        let attempt = guest.store.attempt.id();
        match nested::rename_in_record(bytes, |chunk| route::routed(attempt, chunk)) {
            Ok(record) => Ok(record),
            Err(error) => {
                let error = TaskError::artifact("ArtifactUnreadable", format!("{name}: {error}"));
                guest.store.fail(error).await
            }
        }
    }

    async fn exists(&self, id: &str) -> Result<bool> {
        let (guest, name) = self.guest(id)?;
        let what = format!("could not look up {name}");
        let attempt = &guest.store.attempt;
        let found = guest.store.insist(&what, || attempt.stat_artifact(name)).await?;
        Ok(found.is_some())
    }

    async fn delete(&self, ids: Vec<String>) -> Result<()> {
        for id in ids {
            let (guest, name) = self.guest(&id)?;
            let attempt = &guest.store.attempt;
            // What the task itself reads goes when the task has ended, so that another attempt finds it.
            guest
                .store
                .insist_or_none("could not drop an artifact", || {
                    attempt.delete_artifacts(vec![name.to_owned()])
                })
                .await?;
        }
        Ok(())
    }

    fn reserve(&self, _id: &str) {}

    async fn add_reference(&self, id: &str, reference: &str) -> Result<()> {
        let (guest, name) = self.guest(id)?;
        let (attempt, reference) = (&guest.store.attempt, nested::reference(reference));
        guest
            .store
            .insist("could not add a reference", || {
                attempt.add_reference(name, &reference)
            })
            .await
    }

    async fn remove_reference(&self, id: &str, reference: &str) -> Result<bool> {
        let (guest, name) = self.guest(id)?;
        let (attempt, reference) = (&guest.store.attempt, nested::reference(reference));
        let dropped = guest
            .store
            .insist_or_none("could not remove a reference", || {
                attempt.remove_reference(name, &reference)
            })
            .await?;
        Ok(dropped.unwrap_or(false))
    }

    async fn submit(&self, kind: TaskType, _inputs: Vec<String>, _outputs: Vec<String>) -> Result<String> {
        Err(anyhow!("a task of a device submits no {}", kind.as_str_name()))
    }

    async fn complete(&self, task: &str) -> Result<()> {
        let (guest, marker) = self.guest(task)?;
        let attempt = &guest.store.attempt;
        guest
            .store
            .insist("could not complete a marker", || attempt.complete_marker(marker))
            .await
    }

    // A subscriber that is never answered: tasks of a device wait for no other task.
    fn subscribe(
        &self,
        _tasks: mpsc::UnboundedReceiver<TaskId>,
        _results: mpsc::UnboundedSender<(TaskId, TaskStatus)>,
    ) {
    }

    async fn messages(&self, task: &str) -> Result<mpsc::UnboundedReceiver<Vec<u8>>> {
        Err(anyhow!(
            "a task of a device reads no messages, such as those of {task}"
        ))
    }

    async fn send(&self, task: &str, _payload: Vec<u8>) -> Result<()> {
        Err(anyhow!("a task of a device sends no messages, such as to {task}"))
    }
}
