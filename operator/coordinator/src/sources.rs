//! Where program, input and assumptions come from, and how they get into the store.
//!
//! Owns reading, bounds and hash checks of sources. Does not own what a program must look like.

use std::fs::Metadata;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prover_artifacts::{ArtifactStore, Condition, Key, ObjectInfo, Prefix, Sha256, Sha256Hasher, StoreError};
use prover_core::{ArtifactName, Binding};
use prover_crds::{Place, S3Source, reasons};
use tempfile::{NamedTempFile, TempPath};

use crate::error::Retry;
use crate::handle::SourceAccess;
use crate::program::HEAD_BYTES;

/// Advice for what local mode has not.
const VALUE_TO_FILE: &str = "write the value to a file and name it as `file`";
/// Bytes that are read at once while a file is hashed.
const HASH_BUFFER_BYTES: usize = 1 << 20;

/// A source that only a cluster has.
#[derive(Clone, Copy, Debug)]
pub struct SourceRequest<'a> {
    /// Namespace of the job: nothing of another one may be read.
    pub namespace: &'a str,
    /// A ConfigMap, a Secret, a web server or a foreign bucket.
    pub place: Place<'a>,
    /// Most bytes that it may have.
    pub limit_bytes: u64,
}

/// The bytes of a source.
#[derive(Clone, Debug)]
pub struct FetchedSource {
    /// As messages name it, such as `Secret "inputs"`, without secrets.
    pub origin: String,
    /// The bytes.
    pub content: FetchedContent,
}

/// Where the bytes are.
#[derive(Clone, Debug)]
pub enum FetchedContent {
    /// In memory.
    Bytes(Bytes),
    /// In a file, which is deleted with its last owner.
    File(Arc<TempPath>),
}

/// What stands between a job and its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteProblem {
    /// There is nothing.
    NotFound,
    /// It can't be read: permissions, credentials, what a server answered.
    Unreadable,
    /// It may not be read: no label, a private address.
    NotAllowed,
    /// It has more bytes than allowed.
    TooLarge,
    /// It may pass by itself: the network, a busy server.
    Transient,
}

/// Why a source of a cluster can't be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RemoteError {
    /// What kind of problem it is.
    pub problem: RemoteProblem,
    /// For the user: what was wrong and what to do, without secrets.
    pub message: String,
}

/// Fetches what only a cluster has. Transient problems are tried again by whoever implements it, within bounds.
#[async_trait::async_trait]
pub trait ClusterSources: Send + Sync + std::fmt::Debug {
    /// Fetches a source; its hash is checked by the caller.
    ///
    /// # Errors
    /// It can't be had; the message is for the user.
    async fn fetch(&self, request: SourceRequest<'_>) -> Result<FetchedSource, RemoteError>;
}

/// Why a source can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no such file.
    #[error(
        "{field}.file.path: there is no file {path:?} in the folder {} (paths are relative to the manifest): \
         correct the path or build the file first", folder.display()
    )]
    FileNotFound {
        /// Path of the field.
        field: String,
        /// As written.
        path: String,
        /// Folder of the manifest.
        folder: PathBuf,
    },
    /// A folder, a device, a socket.
    #[error("{field}.file.path: {path:?} is {found}, not a regular file: name a file")]
    NotAFile {
        /// Path of the field.
        field: String,
        /// As written.
        path: String,
        /// What it is.
        found: &'static str,
    },
    /// It can't be read.
    #[error("{field}.file.path: {path:?} can't be read: {source}; give this user permission to read it")]
    FileUnreadable {
        /// Path of the field.
        field: String,
        /// As written.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// More bytes than allowed.
    #[error("{field}: {origin} has {size_bytes} bytes, more than the {limit_bytes} that are allowed")]
    TooLarge {
        /// Path of the field.
        field: String,
        /// Where it comes from.
        origin: String,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// It is not base64.
    #[error("{field}.inline is not base64 ({source}): write the output of `base64 -w0 FILE`")]
    MalformedBase64 {
        /// Path of the field.
        field: String,
        /// What is wrong with it.
        source: base64::DecodeError,
    },
    /// No source, or several.
    #[error("{field}: name exactly one source, such as `file: {{path: ...}}` or `inline`")]
    NotOneSource {
        /// Path of the field.
        field: String,
    },
    /// A kind of source that can't be read from here.
    #[error("{field}.{kind} can't be read {place}: {advice}")]
    NotSupported {
        /// Path of the field.
        field: String,
        /// Name of the source's field.
        kind: &'static str,
        /// Local mode or a cluster.
        place: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// Other bytes than the user expects.
    #[error(
        "{field}.sha256: {origin} has SHA-256 {found}, but the manifest expects {expected}: the file changed, or the \
         manifest is out of date"
    )]
    WrongHash {
        /// Path of the field.
        field: String,
        /// Where it comes from.
        origin: String,
        /// In the manifest, as written.
        expected: String,
        /// Of the bytes.
        found: Sha256,
    },
    /// It is not in the store.
    #[error("{field}.s3: {source}")]
    Fetch {
        /// Path of the field.
        field: String,
        /// What the store said.
        source: Box<StoreError>,
    },
    /// What only a cluster has can't be had.
    #[error("{field}.{kind}: {source}")]
    Remote {
        /// Path of the field.
        field: String,
        /// Name of the source's field.
        kind: &'static str,
        /// What stands in the way.
        source: RemoteError,
    },
    /// Another job with the same uid was submitted with other bytes.
    #[error(
        "{field}: a job with the uid {uid} was submitted before with other bytes: give the new job another uid"
    )]
    Changed {
        /// Path of the field.
        field: String,
        /// The uid.
        uid: String,
    },
    /// The store does not take it.
    #[error("{field} can't be put into the artifact store: {source}")]
    Upload {
        /// Path of the field.
        field: String,
        /// What the store said.
        source: Box<StoreError>,
    },
}

impl SourceError {
    /// Short name for metrics and events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            SourceError::FileNotFound { .. } => "file_not_found",
            SourceError::NotAFile { .. } => "not_a_file",
            SourceError::FileUnreadable { .. } => "file_unreadable",
            SourceError::TooLarge { .. } => "source_too_large",
            SourceError::MalformedBase64 { .. } => "malformed_base64",
            SourceError::NotOneSource { .. } => "not_one_source",
            SourceError::NotSupported { .. } => "source_not_supported",
            SourceError::WrongHash { .. } => "wrong_hash",
            SourceError::Fetch { source, .. } | SourceError::Upload { source, .. } => source.category(),
            SourceError::Remote { source, .. } => match source.problem {
                RemoteProblem::NotFound => "source_not_found",
                RemoteProblem::Unreadable => "source_unreadable",
                RemoteProblem::NotAllowed => "source_not_allowed",
                RemoteProblem::TooLarge => "source_too_large",
                RemoteProblem::Transient => "source_unavailable",
            },
            SourceError::Changed { .. } => "source_changed",
        }
    }

    /// Short CamelCase word for the job's condition.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            SourceError::FileNotFound { .. } => "SourceNotFound",
            SourceError::NotAFile { .. } | SourceError::FileUnreadable { .. } => "SourceUnreadable",
            SourceError::TooLarge { .. } => "SourceTooLarge",
            SourceError::MalformedBase64 { .. } | SourceError::NotOneSource { .. } => "InvalidSpec",
            SourceError::NotSupported { .. } => "SourceNotSupported",
            SourceError::WrongHash { .. } | SourceError::Changed { .. } => "SourceHashMismatch",
            SourceError::Fetch { source, .. } if matches!(**source, StoreError::TooLarge { .. }) => {
                reasons::SOURCE_TOO_LARGE
            }
            SourceError::Fetch { source, .. } if matches!(**source, StoreError::NotFound { .. }) => {
                "SourceNotFound"
            }
            SourceError::Fetch { .. } => "SourceUnreadable",
            SourceError::Remote { source, .. } => match source.problem {
                RemoteProblem::NotFound => reasons::SOURCE_NOT_FOUND,
                RemoteProblem::Unreadable | RemoteProblem::Transient => reasons::SOURCE_UNREADABLE,
                RemoteProblem::NotAllowed => reasons::SOURCE_NOT_ALLOWED,
                RemoteProblem::TooLarge => reasons::SOURCE_TOO_LARGE,
            },
            SourceError::Upload { source, .. } => match **source {
                StoreError::StoreFull { .. } => "StoreFull",
                StoreError::StoreNotWritable { .. } => "StoreNotWritable",
                StoreError::LocalFile { .. } | StoreError::LocalFileChanged { .. } => "SourceUnreadable",
                _ => "StoreFailed",
            },
        }
    }

    /// The user's manifest, files or store are at fault.
    #[must_use]
    pub fn bad_input(&self) -> bool {
        match self {
            SourceError::Upload { .. } => self.reason() != "StoreFailed",
            SourceError::Fetch { source, .. } => source.retry() == prover_artifacts::Retry::Never,
            SourceError::Remote { source, .. } => source.problem != RemoteProblem::Transient,
            _ => true,
        }
    }

    /// What is worth trying again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            SourceError::Fetch { source, .. } | SourceError::Upload { source, .. }
                if source.retry() != prover_artifacts::Retry::Never =>
            {
                Retry::Backoff
            }
            SourceError::Remote { source, .. } if source.problem == RemoteProblem::Transient => {
                Retry::Backoff
            }
            _ => Retry::Never,
        }
    }
}

/// One source of a job, as its manifest names it.
#[derive(Clone, Debug)]
pub(crate) struct Source<'a> {
    /// Path of the field, such as `spec.program`.
    pub(crate) field: String,
    /// Name of the artifact that it becomes.
    pub(crate) name: String,
    /// None: no bytes.
    pub(crate) place: Option<Place<'a>>,
    pub(crate) sha256: Option<&'a str>,
    pub(crate) limit_bytes: u64,
}

/// A source whose bytes are at hand.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) field: String,
    pub(crate) name: String,
    /// As messages name it, such as `file "guest.elf"`.
    pub(crate) origin: String,
    pub(crate) size_bytes: u64,
    /// The first bytes.
    pub(crate) head: Vec<u8>,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    File(PathBuf),
    Temporary(Arc<TempPath>),
    Bytes(Bytes),
}

impl Content {
    /// None where the bytes are in memory.
    fn path(&self) -> Option<&Path> {
        match self {
            Content::File(path) => Some(path),
            Content::Temporary(path) => Some(path),
            Content::Bytes(_) => None,
        }
    }
}

/// What reading sources needs to know.
#[derive(Debug)]
pub(crate) struct Reading<'a> {
    pub(crate) access: &'a SourceAccess,
    pub(crate) store: &'a dyn ArtifactStore,
    pub(crate) tenant: &'a str,
}

impl Reading<'_> {
    /// Finds a source and checks its bounds and its hash.
    pub(crate) async fn find(&self, source: &Source<'_>) -> Result<Found, SourceError> {
        let found = match source.place {
            None => mk_found(source, "nothing".into(), Bytes::new()),
            Some(Place::Inline(text)) => {
                let decoded = STANDARD.decode(text);
                let bytes = decoded.map_err(|error| SourceError::MalformedBase64 {
                    field: source.field.clone(),
                    source: error,
                })?;
                mk_found(source, "the inline value".into(), bytes.into())
            }
            Some(Place::Text(text)) => mk_found(
                source,
                "the inline text".into(),
                Bytes::copy_from_slice(text.as_bytes()),
            ),
            Some(Place::File(file)) => self.file(source, &file.path).await?,
            Some(Place::S3(s3)) if s3.bucket.is_none() => self.s3(source, s3).await?,
            Some(place @ Place::S3(_)) => {
                self.remote(
                    source,
                    "s3.bucket",
                    place,
                    "copy the object to a file and name it as `file`",
                )
                .await?
            }
            Some(place @ Place::Http(_)) => {
                self.remote(source, "http", place, "download it and name it as `file`")
                    .await?
            }
            Some(place @ Place::ConfigMap(_)) => {
                self.remote(source, "configMap", place, VALUE_TO_FILE).await?
            }
            Some(place @ Place::Secret(_)) => self.remote(source, "secret", place, VALUE_TO_FILE).await?,
        };
        if found.size_bytes > source.limit_bytes {
            return Err(SourceError::TooLarge {
                field: found.field,
                origin: found.origin,
                size_bytes: found.size_bytes,
                limit_bytes: source.limit_bytes,
            });
        }
        check_hash(source, &found).await?;
        Ok(found)
    }

    fn not_supported(&self, source: &Source<'_>, kind: &'static str, advice: &'static str) -> SourceError {
        let place = match self.access {
            SourceAccess::Local { .. } => "in local mode",
            SourceAccess::Cluster(_) => "by this coordinator",
        };
        SourceError::NotSupported {
            field: source.field.clone(),
            kind,
            place,
            advice,
        }
    }

    async fn file(&self, source: &Source<'_>, path: &str) -> Result<Found, SourceError> {
        let SourceAccess::Local { manifest_folder } = self.access else {
            let advice = "put the bytes into s3, http, configMap, secret or inline";
            return Err(self.not_supported(source, "file", advice));
        };
        let whole = manifest_folder.join(path);
        let (field, folder, path) = (source.field.clone(), manifest_folder.clone(), path.to_owned());
        let (head_path, told) = (whole.clone(), path.clone());
        let read = move || {
            let unreadable = |error: std::io::Error| match error.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
                    SourceError::FileNotFound {
                        field: field.clone(),
                        path: path.clone(),
                        folder: folder.clone(),
                    }
                }
                _ => SourceError::FileUnreadable {
                    field: field.clone(),
                    path: path.clone(),
                    source: error,
                },
            };
            // Looked at before it is opened: opening a pipe would wait for its writer.
            let metadata = std::fs::metadata(&head_path).map_err(unreadable)?;
            if !metadata.is_file() {
                let found = file_kind(&metadata);
                return Err(SourceError::NotAFile {
                    field: field.clone(),
                    path: path.clone(),
                    found,
                });
            }
            read_head(&head_path)
                .map(|head| (head, metadata.len()))
                .map_err(unreadable)
        };
        let (head, size_bytes) = blocking(read).await?;
        Ok(Found {
            field: source.field.clone(),
            name: source.name.clone(),
            origin: format!("file {told:?}"),
            size_bytes,
            head,
            content: Content::File(whole),
        })
    }

    /// What only a cluster has.
    async fn remote(
        &self,
        source: &Source<'_>,
        kind: &'static str,
        place: Place<'_>,
        advice: &'static str,
    ) -> Result<Found, SourceError> {
        let SourceAccess::Cluster(sources) = self.access else {
            return Err(self.not_supported(source, kind, advice));
        };
        let request = SourceRequest {
            namespace: self.tenant,
            place,
            limit_bytes: source.limit_bytes,
        };
        let fetched = sources
            .fetch(request)
            .await
            .map_err(|error| SourceError::Remote {
                field: source.field.clone(),
                kind,
                source: error,
            })?;
        match fetched.content {
            FetchedContent::Bytes(bytes) => Ok(mk_found(source, fetched.origin, bytes)),
            FetchedContent::File(path) => self.found_file(source, fetched.origin, path).await,
        }
    }

    async fn found_file(
        &self,
        source: &Source<'_>,
        origin: String,
        path: Arc<TempPath>,
    ) -> Result<Found, SourceError> {
        let (told, at) = (source.field.clone(), Arc::clone(&path));
        let read = move || {
            let unreadable = |source: std::io::Error| SourceError::FileUnreadable {
                field: told.clone(),
                path: at.display().to_string(),
                source,
            };
            let size_bytes = std::fs::metadata(&*at).map_err(unreadable)?.len();
            Ok((read_head(&at).map_err(unreadable)?, size_bytes))
        };
        let (head, size_bytes) = blocking(read).await?;
        Ok(Found {
            field: source.field.clone(),
            name: source.name.clone(),
            origin,
            size_bytes,
            head,
            content: Content::Temporary(path),
        })
    }

    /// A key of this coordinator's own store.
    async fn s3(&self, source: &Source<'_>, s3: &S3Source) -> Result<Found, SourceError> {
        let fetch = |error| SourceError::Fetch {
            field: source.field.clone(),
            source: Box::new(error),
        };
        let key = Key::new(format!("inputs/{}/{}", self.tenant, s3.key)).map_err(fetch)?;
        // Through a file: an input may be larger than this process.
        let made = blocking({
            let field = source.field.clone();
            move || {
                let made = NamedTempFile::new().map(NamedTempFile::into_temp_path);
                made.map_err(|source| SourceError::FileUnreadable {
                    field,
                    path: std::env::temp_dir().display().to_string(),
                    source,
                })
            }
        });
        let path = Arc::new(made.await?);
        self.store
            .fetch_file(&key, source.limit_bytes, &path)
            .await
            .map_err(fetch)?;
        self.found_file(source, format!("object {:?}", key.as_str()), path)
            .await
    }
}

fn mk_found(source: &Source<'_>, origin: String, bytes: Bytes) -> Found {
    Found {
        field: source.field.clone(),
        name: source.name.clone(),
        origin,
        size_bytes: bytes.len() as u64,
        head: bytes.iter().take(HEAD_BYTES).copied().collect(),
        content: Content::Bytes(bytes),
    }
}

fn file_kind(metadata: &Metadata) -> &'static str {
    if metadata.is_dir() {
        "a folder"
    } else {
        "a device, pipe or socket"
    }
}

fn read_head(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    std::fs::File::open(path)?
        .take(HEAD_BYTES as u64)
        .read_to_end(&mut head)?;
    Ok(head)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        // The runtime is shutting down, or the work has a fault of ours: neither has a sensible answer.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

async fn check_hash(source: &Source<'_>, found: &Found) -> Result<(), SourceError> {
    let Some(expected) = source.sha256 else {
        return Ok(());
    };
    let actual = match &found.content {
        Content::Bytes(bytes) => Sha256::of(bytes),
        content @ (Content::File(_) | Content::Temporary(_)) => {
            let (content, field, origin) = (content.clone(), found.field.clone(), found.origin.clone());
            blocking(move || {
                hash_file(content.path().unwrap_or(Path::new(""))).map_err(|source| {
                    SourceError::FileUnreadable {
                        field,
                        path: origin,
                        source,
                    }
                })
            })
            .await?
            .sha256
        }
    };
    if expected.eq_ignore_ascii_case(&actual.to_string()) {
        return Ok(());
    }
    Err(SourceError::WrongHash {
        field: found.field.clone(),
        origin: found.origin.clone(),
        expected: expected.to_owned(),
        found: actual,
    })
}

fn hash_file(path: &Path) -> std::io::Result<ObjectInfo> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256Hasher::new();
    let mut buffer = vec![0; HASH_BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Puts a source under its key. The same bytes again change nothing.
pub(crate) async fn upload(
    store: &dyn ArtifactStore,
    prefix: &Prefix,
    uid: &str,
    found: &Found,
) -> Result<(ArtifactName, Binding), SourceError> {
    let failed = |error| match error {
        StoreError::AlreadyExists { .. } => SourceError::Changed {
            field: found.field.clone(),
            uid: uid.to_owned(),
        },
        error => SourceError::Upload {
            field: found.field.clone(),
            source: Box::new(error),
        },
    };
    let key = prefix.source(&found.name).map_err(failed)?;
    let stored = match &found.content {
        Content::File(path) => store.put_file(&key, path, Condition::CreateOrSame).await,
        Content::Temporary(path) => store.put_file(&key, path, Condition::CreateOrSame).await,
        Content::Bytes(bytes) => {
            store
                .put_bytes(&key, bytes.clone(), Condition::CreateOrSame)
                .await
        }
    };
    let info = stored.map_err(failed)?;
    let binding = Binding {
        key: key.as_str().into(),
        sha256: *info.sha256.as_bytes(),
        size_bytes: info.size_bytes,
    };
    Ok((found.name.as_str().into(), binding))
}
