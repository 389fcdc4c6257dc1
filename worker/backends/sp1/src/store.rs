//! Calls of an attempt that are repeated until they are answered.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use prover_backend::protocol::ArtifactInfo;
use prover_backend::{Attempt, CallError, CancellationToken, TaskError};

use crate::codec;
use crate::failure::{Failure, of_call};

/// Pauses between two tries: doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Bytes that are not what their hash says are read so many times; then the store has lost them.
const MOST_DAMAGED: u32 = 5;

/// Folder below the attempt's directory for what is uploaded by itself.
const PUT_FOLDER: &str = "put";

/// An attempt as hosts use it: what can be repeated is repeated while the attempt lasts, and what can't be fails it.
#[derive(Clone)]
pub struct Store {
    /// Who asks.
    pub attempt: Attempt,
    /// What went wrong for good.
    pub failure: Arc<Failure>,
    /// The attempt has ended, however.
    pub over: CancellationToken,
}

impl Store {
    /// For the time of an attempt.
    pub fn new(attempt: Attempt) -> Self {
        Self {
            attempt,
            failure: Arc::default(),
            over: CancellationToken::new(),
        }
    }

    /// Fails the attempt. SP1 never hears of it: it would take it for something else.
    pub async fn fail<T>(&self, error: TaskError) -> Result<T> {
        let message = error.to_string();
        self.failure.set(error);
        self.over.cancelled().await;
        Err(anyhow!(message))
    }

    /// Repeats a call until it is answered. `None`: there is nothing of this name.
    pub async fn insist_or_none<T, F>(&self, what: &str, call: impl Fn() -> F) -> Result<Option<T>>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let (mut pause, mut damaged) = (FIRST_PAUSE, 0);
        loop {
            let error = match call().await {
                Ok(answer) => return Ok(Some(answer)),
                Err(CallError::NotFound(_)) => return Ok(None),
                Err(error) => error,
            };
            if error.ends_attempt() {
                self.over.cancelled().await;
                return Err(anyhow!("{what}: {error}"));
            }
            damaged += u32::from(matches!(error, CallError::Damaged(_)));
            let again = error.retry() || matches!(error, CallError::Internal(_));
            if !again || damaged >= MOST_DAMAGED {
                return self.fail(of_call(what, error)).await;
            }
            tracing::info!(%error, what, "is tried again");
            tokio::select! {
                () = self.over.cancelled() => return Err(anyhow!("{what}: {error}")),
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }

    /// Repeats a call until it is answered; that there is nothing of this name fails the attempt.
    pub async fn insist<T, F>(&self, what: &str, call: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        match self.insist_or_none(what, call).await? {
            Some(answer) => Ok(answer),
            None => {
                let error = CallError::NotFound("there is nothing of this name".to_owned());
                self.fail(of_call(what, error)).await
            }
        }
    }

    /// The bytes of an artifact as they lie in the store.
    pub async fn get(&self, name: &str) -> Result<Vec<u8>> {
        let attempt = &self.attempt;
        if attempt.inputs().iter().any(|input| input.name == name) {
            return match attempt.read_input(name).await {
                Ok(bytes) => Ok(bytes),
                Err(error) => self.fail(error).await,
            };
        }
        let what = format!("could not read {name}");
        let (path, _) = self.insist(&what, || attempt.get_artifact(name)).await?;
        let bytes = match tokio::fs::read(&path).await {
            Ok(bytes) => bytes,
            Err(error) => {
                return self
                    .fail(TaskError::file("read an artifact", &path, &error))
                    .await;
            }
        };
        // It lies in memory as long as the attempt lasts, otherwise.
        let _ = tokio::fs::remove_file(&path).await;
        Ok(bytes)
    }

    /// The bytes of an artifact as SP1 wants them.
    pub async fn get_unpacked(&self, name: &str) -> Result<Vec<u8>> {
        let packed = self.get(name).await?;
        match tokio::task::spawn_blocking(move || codec::unpack(&packed)).await? {
            Ok(bytes) => Ok(bytes),
            Err(error) => {
                let message = format!("{name}: {error}");
                self.fail(TaskError::artifact("ArtifactUnreadable", message))
                    .await
            }
        }
    }

    /// Puts an artifact, packed, and answers with what its name is bound to. With `reserve` it waits until the store may
    /// take it.
    pub async fn put_packed(&self, name: &str, bytes: Vec<u8>, reserve: bool) -> Result<ArtifactInfo> {
        let packed = self.pack(bytes).await?;
        let size = packed.len() as u64;
        if reserve {
            let what = format!("could not reserve room for {name}");
            self.insist(&what, || self.attempt.acquire_permit(name, size))
                .await?;
        }
        self.put(name, &packed).await
    }

    /// Bytes as they lie in the store.
    pub async fn pack(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        match tokio::task::spawn_blocking(move || codec::pack(&bytes)).await? {
            Ok(packed) => Ok(packed),
            Err(error) => {
                self.fail(TaskError::retryable("PackFailed", error.to_string()))
                    .await
            }
        }
    }

    /// Puts an artifact as it is.
    pub async fn put(&self, name: &str, bytes: &[u8]) -> Result<ArtifactInfo> {
        let folder = self.attempt.directory().join(PUT_FOLDER);
        let path = folder.join(name);
        if let Err(error) = write(&folder, &path, bytes).await {
            return self
                .fail(TaskError::file("write an artifact", &path, &error))
                .await;
        }
        let what = format!("could not keep {name}");
        let info = self
            .insist(&what, || self.attempt.put_artifact(name, &path))
            .await?;
        let _ = tokio::fs::remove_file(&path).await;
        Ok(info)
    }

    /// Writes a declared output, packed.
    pub async fn write_output(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let packed = self.pack(bytes).await?;
        match self.attempt.write_output(name, &packed).await {
            Ok(_) => Ok(()),
            Err(error) => self.fail(error).await,
        }
    }
}

async fn write(folder: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    tokio::fs::create_dir_all(folder).await?;
    tokio::fs::write(path, bytes).await
}
