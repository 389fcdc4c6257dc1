//! A store in a bucket of an S3 service: Amazon S3, MinIO, or another one that honours conditional writes.
//!
//! Owns the mapping of the store's calls to S3 requests. Every object carries the digest of its whole content and
//! the id of the call that wrote it as metadata: the first makes `stat` one cheap request, the second tells a
//! writer whose answer got lost that the object it finds is its own. The SDK's own retries are off; each request
//! is retried here, within the one policy of the store.

mod client;
mod download;
mod errors;
mod listing;
mod probe;
#[cfg(test)]
mod tests;
mod upload;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use bytes::Bytes;

use crate::buffers::BufferPool;
use crate::counters::{Counters, Operation, Request};
use crate::error::StoreError;
use crate::hash::{ObjectInfo, Sha256};
use crate::key::{Key, Prefix};
use crate::retry::Retrier;
use crate::store::{ArtifactStore, Condition, Listing, MAX_LIST_OBJECTS, StoreCapabilities, StoreOptions};
use crate::url::S3Location;

/// Metadata of an object: SHA-256 of its whole content, in hexadecimal.
const META_SHA256: &str = "prover-sha256";
/// Metadata of an object: id of the call that wrote it.
const META_WRITER: &str = "prover-writer";
/// `If-None-Match` with this value creates only.
const ANY: &str = "*";

/// The S3 store. Any number of processes may use the same bucket and prefix at once.
#[derive(Debug)]
pub struct S3Store {
    inner: Arc<Inner>,
}

/// What requests need, shared with the tasks of parallel uploads.
#[derive(Debug)]
struct Inner {
    client: Client,
    location: S3Location,
    name: String,
    counters: Arc<Counters>,
    retrier: Retrier,
    buffers: BufferPool,
    multipart_threshold_bytes: u64,
    part_bytes: u64,
    parts_in_flight: usize,
}

/// Sends one request until it succeeds or is not to be tried again; answers the result and how many tries failed
/// before it. A macro, since each S3 operation has a builder type of its own.
macro_rules! request {
    ($inner:expr, $kind:expr, $key:expr, $send:expr) => {{
        let mut tries = $inner.retrier.start();
        loop {
            $inner.counters.request($kind);
            let answer = $send.await;
            let tried = $inner.classified($key, answer);
            if let Some(result) = tries.settle(tried).await {
                break (result, tries.failures());
            }
        }
    }};
}
use request;

impl S3Store {
    /// Opens a bucket. Sends nothing yet.
    pub async fn open(location: S3Location, options: StoreOptions) -> Result<Self, StoreError> {
        let counters = Arc::new(Counters::default());
        let client = client::build(&location, &options).await?;
        let name = location.to_string();
        let part_bytes = options.part_bytes.max(1);
        let parts_in_flight = options.parts_in_flight.max(1);
        let pool_bytes = part_bytes.saturating_mul(parts_in_flight as u64);
        let inner = Inner {
            client,
            location,
            name,
            retrier: Retrier::new(options.retry, options.jitter, Arc::clone(&counters)),
            buffers: BufferPool::new(pool_bytes, Arc::clone(&counters)),
            counters,
            // Content that is sent in one piece must fit into the buffers.
            multipart_threshold_bytes: options.multipart_threshold_bytes.min(pool_bytes),
            part_bytes,
            parts_in_flight,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    fn counted<T>(&self, operation: Operation, result: Result<T, StoreError>) -> Result<T, StoreError> {
        self.inner.counters.operation(operation, &result);
        result
    }
}

#[async_trait]
impl ArtifactStore for S3Store {
    async fn put_file(&self, key: &Key, path: &Path, condition: Condition) -> Result<ObjectInfo, StoreError> {
        self.counted(
            Operation::PutFile,
            self.inner.put_file(key, path, condition).await,
        )
    }

    async fn put_bytes(
        &self,
        key: &Key,
        content: Bytes,
        condition: Condition,
    ) -> Result<ObjectInfo, StoreError> {
        self.counted(
            Operation::PutBytes,
            self.inner.put_bytes(key, content, condition).await,
        )
    }

    async fn get_file(&self, key: &Key, expected: &ObjectInfo, to: &Path) -> Result<(), StoreError> {
        self.counted(Operation::GetFile, self.inner.get_file(key, expected, to).await)
    }

    async fn get_bytes(
        &self,
        key: &Key,
        expected: Option<&ObjectInfo>,
        max_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        self.counted(
            Operation::GetBytes,
            self.inner.get_bytes(key, expected, max_bytes).await,
        )
    }

    async fn fetch_file(&self, key: &Key, max_bytes: u64, to: &Path) -> Result<ObjectInfo, StoreError> {
        self.counted(
            Operation::FetchFile,
            self.inner.fetch_unknown(key, max_bytes, to).await,
        )
    }

    async fn stat(&self, key: &Key) -> Result<ObjectInfo, StoreError> {
        let result = self.inner.head(key.as_str()).await.and_then(|head| {
            let known = head.sha256.map(|sha256| ObjectInfo {
                size_bytes: head.size_bytes,
                sha256,
            });
            known.ok_or_else(|| StoreError::HashUnknown {
                key: key.to_string(),
                store: self.inner.name.clone(),
            })
        });
        self.counted(Operation::Stat, result)
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.counted(Operation::Delete, self.inner.delete(key.as_str()).await)
    }

    async fn delete_prefix(&self, prefix: &Prefix) -> Result<u64, StoreError> {
        self.counted(Operation::DeletePrefix, self.inner.delete_prefix(prefix).await)
    }

    async fn list_after(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Listing, StoreError> {
        let limit = limit.min(MAX_LIST_OBJECTS);
        self.counted(Operation::List, self.inner.list(prefix, after, limit).await)
    }

    async fn probe(&self) -> Result<StoreCapabilities, StoreError> {
        self.counted(Operation::Probe, self.inner.probe().await)
    }

    fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    fn location(&self) -> &str {
        &self.inner.name
    }
}

/// What the metadata of an object says.
#[derive(Debug)]
struct Head {
    size_bytes: u64,
    sha256: Option<Sha256>,
    writer: Option<String>,
}

impl Inner {
    /// The key in the bucket.
    fn bucket_key(&self, key: &str) -> String {
        format!("{}{key}", self.location.prefix)
    }

    fn classified<T, E>(
        &self,
        key: &str,
        result: Result<T, SdkError<E, HttpResponse>>,
    ) -> Result<T, StoreError>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        result.map_err(|error| errors::classify(&error, key, &self.name, &self.location.bucket))
    }

    async fn head(&self, key: &str) -> Result<Head, StoreError> {
        let send = || {
            self.client
                .head_object()
                .bucket(&self.location.bucket)
                .key(self.bucket_key(key))
                .send()
        };
        let (result, _) = request!(self, Request::HeadObject, key, send());
        let answer = result?;
        let metadata = answer.metadata();
        let value = |name: &str| metadata.and_then(|metadata| metadata.get(name));
        Ok(Head {
            size_bytes: answer
                .content_length()
                .and_then(|length| length.try_into().ok())
                .unwrap_or_default(),
            sha256: value(META_SHA256).and_then(|text| text.parse().ok()),
            writer: value(META_WRITER).cloned(),
        })
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let send = || {
            self.client
                .delete_object()
                .bucket(&self.location.bucket)
                .key(self.bucket_key(key))
                .send()
        };
        let (result, _) = request!(self, Request::DeleteObject, key, send());
        match result {
            Ok(_) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
