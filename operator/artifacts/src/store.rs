//! The interface that every store implements, its options, and the one function that opens a store by URL.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::counters::Counters;
use crate::error::StoreError;
use crate::folder::FolderStore;
use crate::hash::ObjectInfo;
use crate::key::{Key, Prefix};
use crate::local;
use crate::retry::{Jitter, RandomJitter, RetryPolicy};
use crate::s3::S3Store;
use crate::url::StoreUrl;

/// The most objects that one [`ArtifactStore::list`] answers.
pub const MAX_LIST_OBJECTS: usize = 10_000;

/// What a write does when an object of its key exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Any existing object is [`StoreError::AlreadyExists`]: exactly one of several writers wins.
    CreateOnly,
    /// An existing object of the same size and SHA-256 is success; any other is [`StoreError::AlreadyExists`].
    CreateOrSame,
}

/// What a store can do, found out by doing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreCapabilities {
    /// Objects can be written, read and deleted.
    pub writable: bool,
    /// A write on condition that no object exists is honoured. A store without it is refused by the probe.
    pub conditional_writes: bool,
    /// The same for uploads in parts. Without it two writers of one large object are told apart only by a check
    /// just before the end of the upload.
    pub conditional_multipart: bool,
    /// The store checks the SHA-256 of what it receives and refuses damaged uploads.
    pub verifies_uploads: bool,
}

/// One object of a [`Listing`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedObject {
    /// Its key.
    pub key: Key,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// The objects below a prefix, in the order of their keys' bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// At most as many as were asked for.
    pub objects: Vec<ListedObject>,
    /// Whether there are more.
    pub truncated: bool,
}

/// Bytes named by key. Every method retries by itself within [`StoreOptions::retry`]; an error that comes out is
/// final for this call.
#[async_trait]
pub trait ArtifactStore: Send + Sync + fmt::Debug {
    /// Stores the content of a local file.
    async fn put_file(&self, key: &Key, path: &Path, condition: Condition) -> Result<ObjectInfo, StoreError>;

    /// Stores bytes from memory.
    async fn put_bytes(
        &self,
        key: &Key,
        content: Bytes,
        condition: Condition,
    ) -> Result<ObjectInfo, StoreError>;

    /// Fetches an object into a local file, whose folder is created if missing. The file appears whole and checked,
    /// or not at all; one that was there before is replaced.
    async fn get_file(&self, key: &Key, expected: &ObjectInfo, to: &Path) -> Result<(), StoreError>;

    /// Fetches an object into memory. One of more than `max_bytes` is [`StoreError::TooLarge`]. Without `expected`
    /// the content is checked against the digest that the store keeps with it, where it keeps one.
    async fn get_bytes(
        &self,
        key: &Key,
        expected: Option<&ObjectInfo>,
        max_bytes: u64,
    ) -> Result<Bytes, StoreError>;

    /// Fetches an object of which only a bound is known into a local file, as [`ArtifactStore::get_file`] does, and
    /// answers what it is. One of more than `max_bytes` is [`StoreError::TooLarge`]. The content is checked against
    /// the digest that the store keeps with it, where it keeps one. A store that does not say otherwise holds the
    /// content in memory meanwhile.
    async fn fetch_file(&self, key: &Key, max_bytes: u64, to: &Path) -> Result<ObjectInfo, StoreError> {
        let content = self.get_bytes(key, None, max_bytes).await?;
        let written = tokio::fs::write(to, &content).await;
        written.map_err(|error| local::write_error(to, error))?;
        Ok(ObjectInfo::of(&content))
    }

    /// Size and digest of an object. The folder store reads the whole file for it.
    async fn stat(&self, key: &Key) -> Result<ObjectInfo, StoreError>;

    /// Deletes an object. One that is not there counts as deleted.
    async fn delete(&self, key: &Key) -> Result<(), StoreError>;

    /// Deletes everything below a prefix, unfinished uploads too, and answers how many objects that were.
    /// The root is refused.
    async fn delete_prefix(&self, prefix: &Prefix) -> Result<u64, StoreError>;

    /// The first objects below a prefix: at most `limit`, and at most [`MAX_LIST_OBJECTS`].
    async fn list(&self, prefix: &Prefix, limit: usize) -> Result<Listing, StoreError> {
        self.list_after(prefix, None, limit).await
    }

    /// As [`ArtifactStore::list`], of the objects whose keys come after one, which need not be there.
    async fn list_after(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Listing, StoreError>;

    /// Finds out by writing and deleting what the store can do. A store that can't be written, or ignores
    /// conditional writes, is an error that says so.
    async fn probe(&self) -> Result<StoreCapabilities, StoreError>;

    /// What this store did so far.
    fn counters(&self) -> &Counters;

    /// The store as messages name it, without credentials.
    fn location(&self) -> &str;
}

/// Credentials given directly, as from a Secret.
#[derive(Clone, PartialEq, Eq)]
pub struct StaticCredentials {
    /// The access key's id.
    pub access_key_id: String,
    /// The secret.
    pub secret_access_key: String,
    /// The token of temporary credentials.
    pub session_token: Option<String>,
}

impl fmt::Debug for StaticCredentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A secret never reaches a log by way of a derived Debug.
        formatter
            .debug_struct("StaticCredentials")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

/// The limits and choices of a store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Limits of trying again.
    pub retry: RetryPolicy,
    /// Randomness of the waits.
    pub jitter: Arc<dyn Jitter>,
    /// Folder: write through to the disk before an object counts as stored. Costs one disk flush per object.
    pub sync: bool,
    /// S3: credentials; without them the usual chain counts (environment, web identity, container, instance).
    pub credentials: Option<StaticCredentials>,
    /// S3: file of PEM certificates of authorities that are trusted beside those of the system; without it that which
    /// the variable `AWS_CA_BUNDLE` names, if any. Read once, when the store is opened.
    pub authorities: Option<PathBuf>,
    /// S3: content of more bytes than this is uploaded in parts.
    pub multipart_threshold_bytes: u64,
    /// S3: size of a part. S3 wants at least 5 MiB; it grows where 10,000 parts would not be enough.
    pub part_bytes: u64,
    /// S3: parts in flight, and so the buffers in memory, of this store's uploads all together.
    pub parts_in_flight: usize,
    /// S3: how long a connection may take.
    pub connect_timeout: Duration,
    /// S3: how long the store may take to begin an answer, the sending of the request included.
    pub read_timeout: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            retry: RetryPolicy::default(),
            jitter: Arc::new(RandomJitter),
            sync: false,
            credentials: None,
            authorities: None,
            multipart_threshold_bytes: 16 << 20,
            part_bytes: 8 << 20,
            parts_in_flight: 4,
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(60),
        }
    }
}

/// Opens the store of a URL with the default options: `file:///folder` (created if missing), or
/// `s3://bucket/prefix?endpoint=http://host:port&region=name&path-style=true`. Writes nothing:
/// [`ArtifactStore::probe`] tells whether it works.
pub async fn open(url: &str) -> Result<Arc<dyn ArtifactStore>, StoreError> {
    open_with(url, StoreOptions::default()).await
}

/// [`open`] with other options.
pub async fn open_with(url: &str, options: StoreOptions) -> Result<Arc<dyn ArtifactStore>, StoreError> {
    match url.parse()? {
        StoreUrl::Folder(path) => Ok(Arc::new(FolderStore::open(path, options).await?)),
        StoreUrl::S3(location) => Ok(Arc::new(S3Store::open(location, options).await?)),
    }
}
