//! Reads objects and checks them. A body that breaks off or differs is fetched again from its beginning.

use std::path::Path;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::{Bytes, BytesMut};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;

use super::{Inner, META_SHA256, errors};
use crate::counters::Request;
use crate::error::StoreError;
use crate::hash::{ObjectInfo, Sha256, Sha256Hasher};
use crate::key::Key;
use crate::local;

/// Memory that is reserved before the first byte of a body; a server that lies about its size gets no more.
const MAX_RESERVED_BYTES: u64 = 1 << 20;

fn announced(answer: &GetObjectOutput) -> Option<u64> {
    answer
        .content_length()
        .and_then(|length| u64::try_from(length).ok())
}

fn too_large(key: &str, size_bytes: u64, limit_bytes: u64) -> StoreError {
    StoreError::TooLarge {
        key: key.into(),
        size_bytes,
        limit_bytes,
    }
}

impl Inner {
    pub(super) async fn get_file(
        &self,
        key: &Key,
        expected: &ObjectInfo,
        to: &Path,
    ) -> Result<(), StoreError> {
        let mut tries = self.retrier.start();
        loop {
            let tried = self.fetch_file(key.as_str(), expected, to).await;
            if let Some(result) = tries.settle(tried).await {
                return result;
            }
        }
    }

    pub(super) async fn get_bytes(
        &self,
        key: &Key,
        expected: Option<&ObjectInfo>,
        max_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        let mut tries = self.retrier.start();
        loop {
            let tried = self.fetch_bytes(key.as_str(), expected, max_bytes).await;
            if let Some(result) = tries.settle(tried).await {
                return result;
            }
        }
    }

    async fn begin(&self, key: &str) -> Result<GetObjectOutput, StoreError> {
        self.counters.request(Request::GetObject);
        let send = self
            .client
            .get_object()
            .bucket(&self.location.bucket)
            .key(self.bucket_key(key))
            .send();
        self.classified(key, send.await)
    }

    /// The next bytes of a body, or none at its end.
    async fn next(&self, key: &str, answer: &mut GetObjectOutput) -> Result<Option<Bytes>, StoreError> {
        match answer.body.next().await {
            None => Ok(None),
            Some(Ok(chunk)) => {
                self.counters.read(chunk.len() as u64);
                Ok(Some(chunk))
            }
            Some(Err(error)) => {
                let source = errors::cause(&error);
                Err(StoreError::Connection {
                    key: key.into(),
                    store: self.name.clone(),
                    source,
                })
            }
        }
    }

    async fn fetch_file(&self, key: &str, expected: &ObjectInfo, to: &Path) -> Result<(), StoreError> {
        let mut answer = self.begin(key).await?;
        // What is longer than expected is only hashed, so that a wrong object can't fill this disk.
        let (partial, found) = self
            .receive(key, &mut answer, expected.size_bytes, None, to)
            .await?;
        self.check(key, expected, &found)?;
        partial
            .persist(to)
            .map_err(|failure| local::write_error(to, failure.error))?;
        Ok(())
    }

    /// An object of which only a bound is known.
    pub(super) async fn fetch_unknown(
        &self,
        key: &Key,
        max_bytes: u64,
        to: &Path,
    ) -> Result<ObjectInfo, StoreError> {
        let mut tries = self.retrier.start();
        loop {
            let tried = self.try_fetch_unknown(key.as_str(), max_bytes, to).await;
            if let Some(result) = tries.settle(tried).await {
                return result;
            }
        }
    }

    async fn try_fetch_unknown(
        &self,
        key: &str,
        max_bytes: u64,
        to: &Path,
    ) -> Result<ObjectInfo, StoreError> {
        let mut answer = self.begin(key).await?;
        let announced = announced(&answer);
        if let Some(size_bytes) = announced.filter(|size_bytes| *size_bytes > max_bytes) {
            return Err(too_large(key, size_bytes, max_bytes));
        }
        let (partial, found) = self
            .receive(key, &mut answer, max_bytes, Some(max_bytes), to)
            .await?;
        self.check_kept(key, &answer, announced, &found)?;
        partial
            .persist(to)
            .map_err(|failure| local::write_error(to, failure.error))?;
        Ok(found)
    }

    /// Writes a body beside its later place, at most `keep_bytes` of it. One of more than `refuse_bytes` is refused.
    async fn receive(
        &self,
        key: &str,
        answer: &mut GetObjectOutput,
        keep_bytes: u64,
        refuse_bytes: Option<u64>,
        to: &Path,
    ) -> Result<(NamedTempFile, ObjectInfo), StoreError> {
        let folder = local::folder_of(to);
        let destination = to.to_owned();
        let partial = self
            .blocking(key, move || {
                local::partial_in(&folder).map_err(|error| local::write_error(&destination, error))
            })
            .await?;
        let failed = |error| local::write_error(to, error);
        let mut file = tokio::fs::File::from_std(partial.as_file().try_clone().map_err(failed)?);
        let mut hasher = Sha256Hasher::new();
        while let Some(chunk) = self.next(key, answer).await? {
            hasher.update(&chunk);
            if let Some(limit_bytes) = refuse_bytes.filter(|limit| hasher.size_bytes() > *limit) {
                return Err(too_large(key, hasher.size_bytes(), limit_bytes));
            }
            if hasher.size_bytes() <= keep_bytes {
                file.write_all(&chunk).await.map_err(failed)?;
            }
        }
        file.flush().await.map_err(failed)?;
        Ok((partial, hasher.finish()))
    }

    async fn fetch_bytes(
        &self,
        key: &str,
        expected: Option<&ObjectInfo>,
        max_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        let mut answer = self.begin(key).await?;
        let announced = announced(&answer);
        if let Some(size_bytes) = announced.filter(|size_bytes| *size_bytes > max_bytes) {
            return Err(too_large(key, size_bytes, max_bytes));
        }
        let mut content =
            BytesMut::with_capacity(announced.unwrap_or_default().min(MAX_RESERVED_BYTES) as usize);
        let mut hasher = Sha256Hasher::new();
        while let Some(chunk) = self.next(key, &mut answer).await? {
            hasher.update(&chunk);
            if hasher.size_bytes() > max_bytes {
                return Err(too_large(key, hasher.size_bytes(), max_bytes));
            }
            content.extend_from_slice(&chunk);
        }
        let found = hasher.finish();
        match expected {
            Some(expected) => self.check(key, expected, &found)?,
            None => self.check_kept(key, &answer, announced, &found)?,
        }
        Ok(content.freeze())
    }

    /// Compares what came with the digest that the store keeps with the object, where it keeps one.
    fn check_kept(
        &self,
        key: &str,
        answer: &GetObjectOutput,
        announced: Option<u64>,
        found: &ObjectInfo,
    ) -> Result<(), StoreError> {
        let kept = answer.metadata().and_then(|metadata| metadata.get(META_SHA256));
        let kept: Option<Sha256> = kept.and_then(|text| text.parse().ok());
        let Some(sha256) = kept else { return Ok(()) };
        let size_bytes = announced.unwrap_or(found.size_bytes);
        self.check(key, &ObjectInfo { size_bytes, sha256 }, found)
    }

    fn check(&self, key: &str, expected: &ObjectInfo, found: &ObjectInfo) -> Result<(), StoreError> {
        if expected == found {
            return Ok(());
        }
        Err(StoreError::ChecksumMismatch {
            key: key.into(),
            store: self.name.clone(),
            expected: Box::new(*expected),
            found: Box::new(*found),
        })
    }
}
