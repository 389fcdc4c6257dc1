//! Transfers between the store and an attempt's directory, with the agent's own patience around the store's.
//!
//! Owns which errors are tried again, for how long, and what an attempt is reported with when they don't go away.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use prover_artifacts::{ArtifactStore, Condition, Key, ObjectInfo, Prefix, Retry, StoreError};
use prover_backend::protocol::{InputFile, OutputFile};
use prover_backend::validate::{self, ValidationError};
use prover_wire::protocol::{Artifact, FailureClass};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::folder::{Folder, OpenFile};
use crate::limits::{FETCH_TRIES, TRANSFER_FIRST, TRANSFER_LONGEST, TRANSFERS_AT_ONCE, UPLOAD_PATIENCE};

/// Folder of fetched inputs in an attempt's directory.
const INPUT_FOLDER: &str = "inputs";
/// Folder of artifacts that a running attempt asked for.
const GOT_FOLDER: &str = "got";

/// Inputs of an attempt, as files.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) inputs: Vec<InputFile>,
    pub(crate) bytes: u64,
    pub(crate) took: Duration,
}

/// Outputs of an attempt, in the store.
#[derive(Debug)]
pub(crate) struct Uploaded {
    pub(crate) outputs: Vec<Artifact>,
    pub(crate) bytes: u64,
}

/// A transfer that failed for good.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    /// An input can't be had.
    #[error("could not fetch input {name:?} ({key}): {source}")]
    Fetch {
        name: String,
        key: String,
        #[source]
        source: Box<StoreError>,
    },
    /// An output can't be stored.
    #[error("could not store output {name:?}: {source}")]
    Store {
        name: String,
        #[source]
        source: Box<StoreError>,
    },
    /// The assignment or the child's report breaks a rule.
    #[error("{what}: {source}")]
    Malformed {
        what: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The child's output files are not as declared.
    #[error(transparent)]
    Outputs(#[from] ValidationError),
    /// The attempt's directory can't be made.
    #[error("could not make the attempt's directory {}: {source}. Check the worker's work directory", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl TransferError {
    /// What the attempt is reported with.
    pub(crate) fn class(&self) -> FailureClass {
        match self {
            Self::Fetch { source, .. } if is_local(source) => FailureClass::Retryable,
            Self::Fetch { .. } => FailureClass::Artifact,
            Self::Store { source, .. } => match **source {
                StoreError::StoreFull { .. }
                | StoreError::StoreNotWritable { .. }
                | StoreError::BucketNotFound { .. }
                | StoreError::AccessDenied { .. }
                | StoreError::NoCredentials { .. } => FailureClass::Fatal,
                ref error if is_local(error) => FailureClass::Retryable,
                _ => FailureClass::Artifact,
            },
            Self::Malformed { .. } | Self::Outputs(_) => FailureClass::Fatal,
            Self::Directory { .. } => FailureClass::Retryable,
        }
    }

    /// Short CamelCase word.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Fetch { source, .. } | Self::Store { source, .. } => store_reason(source),
            Self::Malformed { .. } => "MalformedAssignment",
            Self::Outputs(error) => error.category(),
            Self::Directory { .. } => "WorkDirectoryFailed",
        }
    }
}

/// Whether this machine is at fault, not the store.
fn is_local(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::LocalDiskFull { .. }
            | StoreError::LocalFile { .. }
            | StoreError::LocalFileChanged { .. }
            | StoreError::Stopped { .. }
    )
}

/// Reason of a failure that the store caused.
pub(crate) fn store_reason(error: &StoreError) -> &'static str {
    match error {
        StoreError::StoreFull { .. } => "StoreFull",
        StoreError::StoreNotWritable { .. } => "StoreNotWritable",
        StoreError::BucketNotFound { .. } => "BucketNotFound",
        StoreError::AccessDenied { .. } | StoreError::NoCredentials { .. } => "StoreAccessDenied",
        StoreError::NotFound { .. } => "ArtifactNotFound",
        StoreError::ChecksumMismatch { .. } | StoreError::UploadDamaged { .. } => "ArtifactDamaged",
        StoreError::LocalDiskFull { .. } => "WorkDirectoryFull",
        error if is_local(error) => "WorkDirectoryFailed",
        _ => "StoreUnavailable",
    }
}

/// The wait before the next try, or none where trying again does not help.
fn wait(error: &StoreError, backoff: &mut Backoff) -> Option<Duration> {
    match error.retry() {
        Retry::Never => None,
        Retry::After(after) => Some(after.min(TRANSFER_LONGEST)),
        Retry::Backoff => Some(backoff.next()),
    }
}

/// Fetches one artifact into a file and checks it.
pub(crate) async fn fetch_one(
    store: &dyn ArtifactStore,
    artifact: &Artifact,
    to: &Path,
) -> Result<(), TransferError> {
    let malformed = |source| TransferError::Malformed {
        what: "an artifact of the coordinator",
        source,
    };
    let key = Key::new(artifact.key.clone()).map_err(|error| malformed(error.into()))?;
    let sha256 = artifact
        .sha256
        .parse()
        .map_err(|error: prover_artifacts::Sha256ParseError| malformed(error.into()))?;
    let expected = ObjectInfo {
        size_bytes: artifact.size_bytes,
        sha256,
    };
    let mut backoff = Backoff::new(TRANSFER_FIRST, TRANSFER_LONGEST);
    for tried in 1.. {
        let error = match store.get_file(&key, &expected, to).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        match wait(&error, &mut backoff).filter(|_| tried < FETCH_TRIES) {
            Some(wait) => {
                tracing::warn!(key = key.as_str(), tried, %error, ?wait, "an input could not be fetched");
                tokio::time::sleep(wait).await;
            }
            None => {
                return Err(TransferError::Fetch {
                    name: artifact.name.clone(),
                    key: artifact.key.clone(),
                    source: Box::new(error),
                });
            }
        }
    }
    unreachable!("the loop above has no end")
}

/// Fetches all inputs of an attempt into its directory.
pub(crate) async fn fetch(
    store: Arc<dyn ArtifactStore>,
    artifacts: Vec<Artifact>,
    attempt: AttemptFolder,
) -> Result<Fetched, TransferError> {
    let started = Instant::now();
    let folder = blocking(move || attempt.make(INPUT_FOLDER)).await?;
    let fetching = artifacts.into_iter().map(|artifact| {
        let (store, folder) = (store.clone(), folder.clone());
        async move {
            // The name becomes a file name.
            validate::name("input", &artifact.name)?;
            fetch_one(&*store, &artifact, &folder.own_path().join(&artifact.name)).await?;
            let path = folder.path().join(&artifact.name);
            Ok::<_, TransferError>(InputFile {
                name: artifact.name,
                path: path.to_string_lossy().into_owned(),
                size_bytes: artifact.size_bytes,
                sha256: artifact.sha256,
            })
        }
    });
    let inputs: Vec<InputFile> = stream::iter(fetching)
        .buffered(TRANSFERS_AT_ONCE)
        .try_collect()
        .await?;
    let bytes = inputs.iter().map(|input| input.size_bytes).sum();
    Ok(Fetched {
        inputs,
        bytes,
        took: started.elapsed(),
    })
}

/// Fetches an artifact that a running attempt asked for, and answers with where it lies.
pub(crate) async fn get_one(
    store: &dyn ArtifactStore,
    artifact: &Artifact,
    attempt: AttemptFolder,
    name: &str,
) -> Result<PathBuf, TransferError> {
    let folder = blocking(move || attempt.make(GOT_FOLDER)).await?;
    fetch_one(store, artifact, &folder.own_path().join(name)).await?;
    Ok(folder.path().join(name))
}

/// Runs what looks at files, which may block for a moment on a busy disk.
async fn blocking<T: Send + 'static>(
    look: impl FnOnce() -> Result<T, TransferError> + Send + 'static,
) -> Result<T, TransferError> {
    let looked = tokio::task::spawn_blocking(look).await;
    looked.map_err(|error| TransferError::Malformed {
        what: "looking at files",
        source: error.into(),
    })?
}

/// The folder of one attempt, which its backend may write into.
#[derive(Clone, Debug)]
pub(crate) struct AttemptFolder {
    /// The folder of all attempts.
    attempts: Folder,
    attempt: u64,
}

impl AttemptFolder {
    pub(crate) fn new(attempts: Folder, attempt: u64) -> Self {
        Self { attempts, attempt }
    }

    /// Where its backend sees it.
    pub(crate) fn path(&self) -> PathBuf {
        self.attempts.path().join(self.attempt.to_string())
    }

    fn failed(&self, source: std::io::Error) -> TransferError {
        TransferError::Directory {
            path: self.path(),
            source,
        }
    }

    /// Makes a folder in it.
    fn make(&self, name: &str) -> Result<Folder, TransferError> {
        let folder = self.attempts.make(&self.attempt.to_string());
        folder
            .and_then(|folder| folder.make(name))
            .map_err(|source| self.failed(source))
    }

    /// Opens a file that its backend names.
    fn file(&self, name: &str, path: &Path) -> Result<OpenFile, TransferError> {
        let folder = self.attempts.enter(&self.attempt.to_string());
        let folder = folder.map_err(|source| self.failed(source))?;
        Ok(folder.file(name, path)?)
    }

    /// Removes it with all that is in it.
    pub(crate) fn remove(&self) -> std::io::Result<()> {
        self.attempts.remove(&self.attempt.to_string())
    }
}

/// Stores one file of an attempt under the attempt's own key.
pub(crate) async fn store_one(
    store: &dyn ArtifactStore,
    artifact_prefix: &str,
    folder: &AttemptFolder,
    name: &str,
    path: PathBuf,
) -> Result<Artifact, TransferError> {
    let attempt = folder.attempt;
    let (opened_in, opened_as) = (folder.clone(), name.to_owned());
    let file = blocking(move || opened_in.file(&opened_as, &path)).await?;
    let path = &file.path();
    let malformed = |source: StoreError| TransferError::Malformed {
        what: "the artifact's name or prefix",
        source: source.into(),
    };
    let prefix = Prefix::new(artifact_prefix).map_err(malformed)?;
    let key = prefix.attempt(attempt, name).map_err(malformed)?;
    let give_up = Instant::now() + UPLOAD_PATIENCE;
    let mut backoff = Backoff::new(TRANSFER_FIRST, TRANSFER_LONGEST);
    loop {
        // The same attempt may store the same content twice: after a broken connection nobody knows whether the
        // first time arrived.
        let error = match store.put_file(&key, path, Condition::CreateOrSame).await {
            Ok(info) => {
                return Ok(prover_wire::artifact(
                    name,
                    key.as_str(),
                    *info.sha256.as_bytes(),
                    info.size_bytes,
                ));
            }
            Err(error) => error,
        };
        match wait(&error, &mut backoff).filter(|_| Instant::now() < give_up) {
            Some(wait) => {
                tracing::warn!(key = key.as_str(), %error, ?wait, "an output could not be stored");
                tokio::time::sleep(wait).await;
            }
            None => {
                return Err(TransferError::Store {
                    name: name.to_owned(),
                    source: Box::new(error),
                });
            }
        }
    }
}

/// Checks and stores all outputs of an attempt.
pub(crate) async fn upload(
    store: Arc<dyn ArtifactStore>,
    artifact_prefix: String,
    folder: AttemptFolder,
    declared: Vec<String>,
    outputs: Vec<OutputFile>,
) -> Result<Uploaded, TransferError> {
    let directory = folder.path();
    let files = blocking(move || Ok(validate::output_files(&directory, &declared, &outputs)?)).await?;
    let storing = files.into_iter().map(|(name, path)| {
        let (store, prefix, folder) = (store.clone(), artifact_prefix.clone(), folder.clone());
        async move { store_one(&*store, &prefix, &folder, &name, path).await }
    });
    let outputs: Vec<Artifact> = stream::iter(storing)
        .buffered(TRANSFERS_AT_ONCE)
        .try_collect()
        .await?;
    let bytes = outputs.iter().map(|output| output.size_bytes).sum();
    Ok(Uploaded { outputs, bytes })
}
