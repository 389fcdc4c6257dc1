//! Everything that can go wrong with a store, each with a metric label and whether trying again helps.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::hash::ObjectInfo;

/// Whether and when the same call may succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Trying again changes nothing.
    Never,
    /// The store said when to come back.
    After(Duration),
    /// Try again with exponential backoff.
    Backoff,
}

/// What a library below us said, kept as the cause.
pub type Cause = Box<dyn Error + Send + Sync>;

/// Why a store refused or failed. `store` is the URL of the store, without credentials.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The URL of a store can't be used.
    #[error(
        "the store URL `{url}` can't be used: {problem}. Write file:///folder, or \
         s3://bucket/prefix?region=REGION, with &endpoint=http://host:port&path-style=true for MinIO"
    )]
    InvalidUrl {
        /// The URL, without user information.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A key or prefix breaks the rules of [`Key`](crate::Key).
    #[error("the key `{key}` is not allowed: {problem}")]
    InvalidKey {
        /// The key, escaped and cut.
        key: String,
        /// Which rule it breaks.
        problem: String,
    },
    /// There is no such object.
    #[error("there is no object `{key}` in the store {store}")]
    NotFound {
        /// The object.
        key: String,
        /// The store.
        store: String,
    },
    /// There is no such bucket.
    #[error("there is no bucket `{bucket}` in the store {store}: create it, or correct the store URL")]
    BucketNotFound {
        /// The bucket.
        bucket: String,
        /// The store.
        store: String,
    },
    /// An object lies there already and the condition of the write forbids that.
    #[error("the object `{key}` exists already in the store {store}; objects are never replaced")]
    AlreadyExists {
        /// The object.
        key: String,
        /// The store.
        store: String,
    },
    /// The bytes are not those that were expected: corrupted on the way or in the store.
    #[error(
        "the object `{key}` in the store {store} is damaged: expected {} bytes with SHA-256 {}, got {} bytes with {}",
        expected.size_bytes, expected.sha256, found.size_bytes, found.sha256
    )]
    ChecksumMismatch {
        /// The object.
        key: String,
        /// The store.
        store: String,
        /// What it should be.
        expected: Box<ObjectInfo>,
        /// What was read.
        found: Box<ObjectInfo>,
    },
    /// The store found that the bytes of an upload differ from their checksum.
    #[error("the upload of `{key}` to the store {store} was damaged on the way: {problem}")]
    UploadDamaged {
        /// The object.
        key: String,
        /// The store.
        store: String,
        /// Which checksum differs, in whose words.
        problem: String,
    },
    /// The object was not written by this store, so its digest is unknown.
    #[error(
        "the store {store} knows no SHA-256 of the object `{key}`: it was not written by prover-operator"
    )]
    HashUnknown {
        /// The object.
        key: String,
        /// The store.
        store: String,
    },
    /// The store has no space left.
    #[error(
        "the store {store} is full: could not write `{key}`. Free space or enlarge it, then run the job again"
    )]
    StoreFull {
        /// The object.
        key: String,
        /// The store.
        store: String,
        /// What said so.
        #[source]
        source: Cause,
    },
    /// The store can't be written at all.
    #[error("the store folder {} can't be written: {source}. Give this user write permission or choose another folder", path.display())]
    StoreNotWritable {
        /// The folder.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The credentials are missing, wrong, or don't allow this.
    #[error(
        "the store {store} refuses access to `{key}` ({code}). Check the credentials and what they allow"
    )]
    AccessDenied {
        /// The object.
        key: String,
        /// The store.
        store: String,
        /// The store's own code.
        code: String,
    },
    /// No credentials were found.
    #[error(
        "no credentials for the store {store}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the pod a web identity"
    )]
    NoCredentials {
        /// The store.
        store: String,
        /// What was tried.
        #[source]
        source: Cause,
    },
    /// The certificates that the store's shall be checked with can't be used.
    #[error(
        "the certificates in {}, which the store {store} shall be checked with, can't be used: {problem}. Give a file \
         of PEM certificates of authorities (AWS_CA_BUNDLE; spec.artifactStore.s3.caRef of a ProverCluster)",
        path.display()
    )]
    Authorities {
        /// The store.
        store: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The store asks for fewer requests.
    #[error("the store {store} is too busy for `{key}` ({code})")]
    Throttled {
        /// The object.
        key: String,
        /// The store.
        store: String,
        /// The store's own code.
        code: String,
        /// When the store wants the next try.
        retry_after: Option<Duration>,
    },
    /// No answer in time.
    #[error("the store {store} did not answer in time about `{key}`")]
    Timeout {
        /// The object.
        key: String,
        /// The store.
        store: String,
        /// What ran out.
        #[source]
        source: Cause,
    },
    /// The connection failed or broke.
    #[error(
        "the connection to the store {store} failed at `{key}`: {source}. Check that its endpoint is right and reachable"
    )]
    Connection {
        /// The object.
        key: String,
        /// The store.
        store: String,
        /// What broke.
        #[source]
        source: Cause,
    },
    /// The store answered with an error of its own side.
    #[error("the store {store} failed at `{key}`: {code}")]
    StoreFailed {
        /// The object.
        key: String,
        /// The store.
        store: String,
        /// The store's own code.
        code: String,
        /// The whole answer.
        #[source]
        source: Cause,
    },
    /// The store refused the request for a reason that has no name of its own here.
    #[error("the store {store} refused `{key}`: {code}")]
    Rejected {
        /// The object.
        key: String,
        /// The store.
        store: String,
        /// The store's own code.
        code: String,
        /// The whole answer.
        #[source]
        source: Cause,
    },
    /// The object is larger than what the caller or the store takes.
    #[error("the object `{key}` has {size_bytes} bytes, more than the limit of {limit_bytes}")]
    TooLarge {
        /// The object.
        key: String,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// More objects than one call handles.
    #[error("the prefix `{prefix}` in the store {store} has more than {limit} objects")]
    TooManyObjects {
        /// The prefix.
        prefix: String,
        /// The store.
        store: String,
        /// The limit.
        limit: u64,
    },
    /// The store replaces objects although it was told not to.
    #[error(
        "the store {store} ignores conditional writes (If-None-Match), which protect against two coordinators \
         writing at once. Use Amazon S3, MinIO, or another store that honours them"
    )]
    ConditionalWritesUnsupported {
        /// The store.
        store: String,
    },
    /// A file of the store's folder failed.
    #[error("the file of `{key}` in the store {store} failed: {source}")]
    StoreFile {
        /// The object.
        key: String,
        /// The store.
        store: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The file on this machine that is the source or the destination failed.
    #[error("could not {action} the local file {}: {source}", path.display())]
    LocalFile {
        /// Read or write.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The disk of the destination on this machine is full.
    #[error("no space is left on this machine for {}: give the work directory more space", path.display())]
    LocalDiskFull {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The local file changed while it was uploaded.
    #[error("the local file {} changed while it was uploaded", path.display())]
    LocalFileChanged {
        /// The file.
        path: PathBuf,
    },
    /// A blocking call of the folder store ended without a result, as when the process shuts down.
    #[error("the work on `{key}` in the store {store} was stopped: this process is shutting down")]
    Stopped {
        /// The object.
        key: String,
        /// The store.
        store: String,
    },
}

impl StoreError {
    /// The metric label of this error: a fixed, small set.
    pub fn category(&self) -> &'static str {
        match self {
            Self::InvalidUrl { .. } => "invalid_url",
            Self::InvalidKey { .. } => "invalid_key",
            Self::NotFound { .. } => "not_found",
            Self::BucketNotFound { .. } => "bucket_not_found",
            Self::AlreadyExists { .. } => "already_exists",
            Self::ChecksumMismatch { .. } => "checksum_mismatch",
            Self::UploadDamaged { .. } => "upload_damaged",
            Self::HashUnknown { .. } => "hash_unknown",
            Self::StoreFull { .. } => "store_full",
            Self::StoreNotWritable { .. } => "store_not_writable",
            Self::AccessDenied { .. } => "access_denied",
            Self::NoCredentials { .. } => "no_credentials",
            Self::Authorities { .. } => "authorities",
            Self::Throttled { .. } => "throttled",
            Self::Timeout { .. } => "timeout",
            Self::Connection { .. } => "connection",
            Self::StoreFailed { .. } => "store_failed",
            Self::Rejected { .. } => "rejected",
            Self::TooLarge { .. } => "too_large",
            Self::TooManyObjects { .. } => "too_many_objects",
            Self::ConditionalWritesUnsupported { .. } => "conditional_writes_unsupported",
            Self::StoreFile { .. } => "store_file",
            Self::LocalFile { .. } => "local_file",
            Self::LocalDiskFull { .. } => "local_disk_full",
            Self::LocalFileChanged { .. } => "local_file_changed",
            Self::Stopped { .. } => "stopped",
        }
    }

    /// Whether the same call may succeed later. Callers with more patience than the store's own retries use it too.
    pub fn retry(&self) -> Retry {
        match self {
            Self::ChecksumMismatch { .. }
            | Self::UploadDamaged { .. }
            | Self::Timeout { .. }
            | Self::Connection { .. }
            | Self::StoreFailed { .. }
            | Self::Throttled {
                retry_after: None, ..
            } => Retry::Backoff,
            Self::Throttled {
                retry_after: Some(after),
                ..
            } => Retry::After(*after),
            Self::StoreFile { source, .. } if is_transient(source) => Retry::Backoff,
            Self::InvalidUrl { .. }
            | Self::InvalidKey { .. }
            | Self::NotFound { .. }
            | Self::BucketNotFound { .. }
            | Self::AlreadyExists { .. }
            | Self::HashUnknown { .. }
            | Self::StoreFull { .. }
            | Self::StoreNotWritable { .. }
            | Self::AccessDenied { .. }
            | Self::NoCredentials { .. }
            | Self::Authorities { .. }
            | Self::Rejected { .. }
            | Self::TooLarge { .. }
            | Self::TooManyObjects { .. }
            | Self::ConditionalWritesUnsupported { .. }
            | Self::StoreFile { .. }
            | Self::LocalFile { .. }
            | Self::LocalDiskFull { .. }
            | Self::LocalFileChanged { .. }
            | Self::Stopped { .. } => Retry::Never,
        }
    }
}

/// Network file systems report these when a server restarts; a local disk reports `EIO` for a passing fault too.
fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, NetworkDown, ResourceBusy, StaleNetworkFileHandle, TimedOut};
    matches!(
        error.kind(),
        Interrupted | NetworkDown | ResourceBusy | StaleNetworkFileHandle | TimedOut
    ) || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Whether the disk or the quota is used up.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Whether writing is forbidden, as opposed to failing.
pub(crate) fn is_not_writable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    )
}
