//! Writes objects: small content in one request, large content in parts, always on condition that no object exists.
//!
//! Content is hashed before it is sent and the store compares: the digest of the whole goes into the metadata, that
//! of each request into its checksum header. Aborts what it could not finish, also when its caller goes away.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinSet};
use uuid::Uuid;

use super::{ANY, Inner, META_SHA256, META_WRITER, request};
use crate::counters::Request;
use crate::error::StoreError;
use crate::hash::{ObjectInfo, Sha256, Sha256Hasher};
use crate::key::Key;
use crate::local;
use crate::store::Condition;

/// S3's limit of parts in one upload.
const MAX_PARTS: u64 = 10_000;
/// Bytes that hashing a file reads at once.
const HASH_BUFFER_BYTES: usize = 256 << 10;

/// Where the bytes of an upload come from.
#[derive(Debug, Clone)]
enum Content {
    File { file: Arc<File>, path: PathBuf },
    Memory(Bytes),
}

/// How content is cut: the digest of the whole, and that of each part.
#[derive(Debug)]
struct Plan {
    info: ObjectInfo,
    part_bytes: u64,
    digests: Vec<Sha256>,
}

impl Plan {
    /// Begin and end of a part, counted from 0.
    fn range(&self, index: usize) -> (u64, u64) {
        let begin = index as u64 * self.part_bytes;
        (begin, (begin + self.part_bytes).min(self.info.size_bytes))
    }
}

impl Inner {
    pub(super) async fn put_file(
        self: &Arc<Self>,
        key: &Key,
        path: &Path,
        condition: Condition,
    ) -> Result<ObjectInfo, StoreError> {
        let owned = path.to_owned();
        let (file, size_bytes) = self
            .blocking(key.as_str(), move || {
                let file = local::open_source(&owned)?;
                let size_bytes = file
                    .metadata()
                    .map_err(|error| local::read_error(&owned, error))?
                    .len();
                Ok((Arc::new(file), size_bytes))
            })
            .await?;
        let content = Content::File {
            file,
            path: path.to_owned(),
        };
        if size_bytes > self.multipart_threshold_bytes {
            return self.put_parts(key.as_str(), content, size_bytes, condition).await;
        }
        // One byte more tells a file that grew from one that did not.
        let _lease = self.buffers.acquire(size_bytes).await;
        let (body, info) = self
            .blocking(key.as_str(), move || {
                let body = content.read(0, size_bytes)?;
                let info = ObjectInfo::of(&body);
                Ok((body, info))
            })
            .await?;
        self.put_object(key.as_str(), body, &info, condition).await?;
        Ok(info)
    }

    pub(super) async fn put_bytes(
        self: &Arc<Self>,
        key: &Key,
        content: Bytes,
        condition: Condition,
    ) -> Result<ObjectInfo, StoreError> {
        let size_bytes = content.len() as u64;
        if size_bytes > self.multipart_threshold_bytes {
            return self
                .put_parts(key.as_str(), Content::Memory(content), size_bytes, condition)
                .await;
        }
        let hashed = content.clone();
        let info = self
            .blocking(key.as_str(), move || Ok(ObjectInfo::of(&hashed)))
            .await?;
        self.put_object(key.as_str(), content, &info, condition).await?;
        Ok(info)
    }

    /// Creates an object with one request.
    async fn put_object(
        &self,
        key: &str,
        body: Bytes,
        info: &ObjectInfo,
        condition: Condition,
    ) -> Result<(), StoreError> {
        let writer = Uuid::new_v4().to_string();
        let send = || {
            self.counters.written(info.size_bytes);
            self.client
                .put_object()
                .bucket(&self.location.bucket)
                .key(self.bucket_key(key))
                .if_none_match(ANY)
                .checksum_sha256(BASE64.encode(info.sha256.as_bytes()))
                .metadata(META_SHA256, info.sha256.to_string())
                .metadata(META_WRITER, &writer)
                .body(ByteStream::from(body.clone()))
                .customize()
                // The signed checksum header covers the content already.
                .disable_payload_signing()
                .send()
        };
        let (result, failures) = request!(self, Request::PutObject, key, send());
        match result {
            Ok(answer) => self.confirm(key, &info.sha256, answer.checksum_sha256()).await,
            Err(StoreError::AlreadyExists { .. }) => {
                self.settle_existing(key, info, condition, &writer, failures > 0)
                    .await
            }
            Err(error) => Err(error),
        }
    }

    /// Compares the checksum that the store answered with ours. An object that differs is removed: it is ours.
    async fn confirm(&self, key: &str, expected: &Sha256, answered: Option<&str>) -> Result<(), StoreError> {
        let Some(answered) = answered else {
            self.counters.unconfirmed_upload();
            return Ok(());
        };
        // A checksum of parts ends with their number.
        let digest = answered.split('-').next().unwrap_or_default();
        if digest == BASE64.encode(expected.as_bytes()) {
            return Ok(());
        }
        self.delete(key).await?;
        let problem = format!("the store answered SHA-256 {answered}");
        Err(StoreError::UploadDamaged {
            key: key.into(),
            store: self.name.clone(),
            problem,
        })
    }

    /// Decides what it means that the object exists: an earlier try of this very call may have written it, its
    /// answer lost; or the caller takes the same content as success.
    async fn settle_existing(
        &self,
        key: &str,
        info: &ObjectInfo,
        condition: Condition,
        writer: &str,
        tried_before: bool,
    ) -> Result<(), StoreError> {
        let exists = || StoreError::AlreadyExists {
            key: key.into(),
            store: self.name.clone(),
        };
        if condition == Condition::CreateOnly && !tried_before {
            return Err(exists());
        }
        let head = match self.head(key).await {
            Err(StoreError::NotFound { .. }) => return Err(exists()),
            other => other?,
        };
        let ours = head.writer.as_deref() == Some(writer);
        let same = head.size_bytes == info.size_bytes && head.sha256 == Some(info.sha256);
        if ours || (condition == Condition::CreateOrSame && same) {
            Ok(())
        } else {
            Err(exists())
        }
    }

    /// Creates an object in parts.
    async fn put_parts(
        self: &Arc<Self>,
        key: &str,
        content: Content,
        size_bytes: u64,
        condition: Condition,
    ) -> Result<ObjectInfo, StoreError> {
        let part_bytes = self.part_size(key, size_bytes)?;
        let hashed = content.clone();
        let plan = self
            .blocking(key, move || hashed.plan(size_bytes, part_bytes))
            .await?;
        let info = plan.info;
        // Large content is not sent in vain; the condition at the end still decides.
        match self.head(key).await {
            Ok(_) => {
                self.settle_existing(key, &info, condition, "", false).await?;
                return Ok(info);
            }
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let writer = Uuid::new_v4().to_string();
        let mut upload = self.create_upload(key, &info, &writer).await?;
        let result = match self.upload_parts(&upload.id, key, content, Arc::new(plan)).await {
            Ok(parts) => self.complete(&mut upload, parts, &info, condition, &writer).await,
            Err(error) => Err(error),
        };
        upload.abort().await;
        result.map(|()| info)
    }

    /// The size of a part: as configured, but larger where the number of parts would pass S3's limit.
    fn part_size(&self, key: &str, size_bytes: u64) -> Result<u64, StoreError> {
        let limit_bytes = self.buffers.bytes().saturating_mul(MAX_PARTS);
        if size_bytes > limit_bytes {
            return Err(StoreError::TooLarge {
                key: key.into(),
                size_bytes,
                limit_bytes,
            });
        }
        Ok(self.part_bytes.max(size_bytes.div_ceil(MAX_PARTS)))
    }

    /// Begins an upload. It goes on when its caller goes away, since an upload whose id nobody knows could not be
    /// aborted: the one that nobody takes aborts itself when dropped.
    pub(super) async fn create_upload(
        self: &Arc<Self>,
        key: &str,
        info: &ObjectInfo,
        writer: &str,
    ) -> Result<Upload, StoreError> {
        let (inner, owned, writer, info) = (Arc::clone(self), key.to_owned(), writer.to_owned(), *info);
        let task = tokio::spawn(async move { inner.send_create(owned, &info, &writer).await });
        self.unwind(key, task.await)?
    }

    async fn send_create(
        self: Arc<Self>,
        key: String,
        info: &ObjectInfo,
        writer: &str,
    ) -> Result<Upload, StoreError> {
        let send = || {
            self.client
                .create_multipart_upload()
                .bucket(&self.location.bucket)
                .key(self.bucket_key(&key))
                .checksum_algorithm(ChecksumAlgorithm::Sha256)
                .metadata(META_SHA256, info.sha256.to_string())
                .metadata(META_WRITER, writer)
                .send()
        };
        let (result, _) = request!(self, Request::CreateMultipartUpload, &key, send());
        let id = result?.upload_id.unwrap_or_default();
        Ok(Upload {
            inner: self,
            key,
            id,
            open: true,
        })
    }

    async fn upload_parts(
        self: &Arc<Self>,
        upload_id: &str,
        key: &str,
        content: Content,
        plan: Arc<Plan>,
    ) -> Result<Vec<CompletedPart>, StoreError> {
        let mut running = JoinSet::new();
        let mut finished = Vec::with_capacity(plan.digests.len());
        let mut next = 0;
        while finished.len() < plan.digests.len() {
            while next < plan.digests.len() && running.len() < self.parts_in_flight {
                let (inner, content, plan) = (Arc::clone(self), content.clone(), Arc::clone(&plan));
                let (upload_id, key) = (upload_id.to_owned(), key.to_owned());
                running.spawn(async move { inner.send_part(&upload_id, &key, &content, &plan, next).await });
                next += 1;
            }
            let Some(ended) = running.join_next().await else {
                break;
            };
            match self.unwind(key, ended).and_then(|result| result) {
                Ok(part) => finished.push(part),
                Err(error) => {
                    // A part that arrives after the abort would stay in the bucket.
                    running.shutdown().await;
                    return Err(error);
                }
            }
        }
        finished.sort_unstable_by_key(|part| part.part_number);
        Ok(finished)
    }

    /// Reads one part into a buffer of the pool and sends it.
    async fn send_part(
        &self,
        upload_id: &str,
        key: &str,
        content: &Content,
        plan: &Plan,
        index: usize,
    ) -> Result<CompletedPart, StoreError> {
        let (begin, end) = plan.range(index);
        // Content that lies in memory needs no other buffer.
        let _lease = match content {
            Content::File { .. } => Some(self.buffers.acquire(end - begin).await),
            Content::Memory(_) => None,
        };
        let source = content.clone();
        let body = self.blocking(key, move || source.read(begin, end)).await?;
        // At most MAX_PARTS, so it fits.
        let number = i32::try_from(index + 1).unwrap_or(i32::MAX);
        let digest = plan.digests[index];
        let result = self
            .upload_part(upload_id, key, number, body.clone(), &digest)
            .await;
        match (result, content) {
            (Err(StoreError::UploadDamaged { .. }), Content::File { path, .. })
                if Sha256::of(&body) != digest =>
            {
                Err(StoreError::LocalFileChanged { path: path.clone() })
            }
            (result, _) => result,
        }
    }

    pub(super) async fn upload_part(
        &self,
        upload_id: &str,
        key: &str,
        number: i32,
        body: Bytes,
        digest: &Sha256,
    ) -> Result<CompletedPart, StoreError> {
        let checksum = BASE64.encode(digest.as_bytes());
        let send = || {
            self.counters.written(body.len() as u64);
            self.client
                .upload_part()
                .bucket(&self.location.bucket)
                .key(self.bucket_key(key))
                .upload_id(upload_id)
                .part_number(number)
                .checksum_sha256(&checksum)
                .body(ByteStream::from(body.clone()))
                .customize()
                .disable_payload_signing()
                .send()
        };
        let (result, _) = request!(self, Request::UploadPart, key, send());
        let answer = result?;
        match answer.checksum_sha256() {
            None => self.counters.unconfirmed_upload(),
            Some(answered) if answered == checksum => {}
            Some(answered) => {
                let problem = format!("the store answered SHA-256 {answered} of part {number}");
                return Err(StoreError::UploadDamaged {
                    key: key.into(),
                    store: self.name.clone(),
                    problem,
                });
            }
        }
        let part = CompletedPart::builder()
            .part_number(number)
            .checksum_sha256(checksum);
        Ok(part.set_e_tag(answer.e_tag().map(ToOwned::to_owned)).build())
    }

    async fn complete(
        self: &Arc<Self>,
        upload: &mut Upload,
        parts: Vec<CompletedPart>,
        info: &ObjectInfo,
        condition: Condition,
        writer: &str,
    ) -> Result<(), StoreError> {
        let composite = composite_digest(&parts);
        let key = upload.key.clone();
        let (result, failures) = self.send_complete(upload, parts).await;
        match result {
            Ok(answered) => self.confirm(&key, &composite, answered.as_deref()).await,
            Err(StoreError::AlreadyExists { .. }) => {
                self.settle_existing(&key, info, condition, writer, failures > 0)
                    .await
            }
            // The upload is gone because an earlier try completed it: the object is there and ours.
            Err(StoreError::Rejected { code, .. }) if failures > 0 && code == "NoSuchUpload" => {
                self.settle_existing(&key, info, condition, writer, true).await
            }
            Err(error) => Err(error),
        }
    }

    /// Ends an upload; answers the composite checksum that the store computed, and how many tries failed before.
    pub(super) async fn send_complete(
        &self,
        upload: &mut Upload,
        parts: Vec<CompletedPart>,
    ) -> (Result<Option<String>, StoreError>, u32) {
        let completed = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let send = || {
            self.client
                .complete_multipart_upload()
                .bucket(&self.location.bucket)
                .key(self.bucket_key(&upload.key))
                .upload_id(&upload.id)
                .if_none_match(ANY)
                .multipart_upload(completed.clone())
                .send()
        };
        let (result, failures) = request!(self, Request::CompleteMultipartUpload, &upload.key, send());
        if result.is_ok() {
            upload.open = false;
        }
        (result.map(|answer| answer.checksum_sha256), failures)
    }

    /// Removes the parts of an upload that will not be completed.
    pub(super) async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError> {
        let send = || {
            self.client
                .abort_multipart_upload()
                .bucket(&self.location.bucket)
                .key(self.bucket_key(key))
                .upload_id(upload_id)
                .send()
        };
        let (result, _) = request!(self, Request::AbortMultipartUpload, key, send());
        match result {
            Ok(_) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(StoreError::Rejected { code, .. }) if code == "NoSuchUpload" => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Runs what may block (files, hashing) beside the asynchronous work.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        key: &str,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.unwind(key, tokio::task::spawn_blocking(work).await)?
    }

    fn unwind<T>(&self, key: &str, ended: Result<T, JoinError>) -> Result<T, StoreError> {
        match ended {
            Ok(value) => Ok(value),
            Err(failure) if failure.is_panic() => std::panic::resume_unwind(failure.into_panic()),
            Err(_) => Err(StoreError::Stopped {
                key: key.into(),
                store: self.name.clone(),
            }),
        }
    }
}

/// S3's checksum of an object in parts: the digest of the parts' digests.
fn composite_digest(parts: &[CompletedPart]) -> Sha256 {
    let mut hasher = Sha256Hasher::new();
    for part in parts {
        let digest = part.checksum_sha256().and_then(|text| BASE64.decode(text).ok());
        hasher.update(&digest.unwrap_or_default());
    }
    hasher.finish().sha256
}

impl Content {
    fn read(&self, begin: u64, end: u64) -> Result<Bytes, StoreError> {
        match self {
            Self::Memory(bytes) => Ok(bytes.slice(begin as usize..end as usize)),
            Self::File { file, path } => {
                let mut buffer = vec![0; (end - begin) as usize];
                file.read_exact_at(&mut buffer, begin)
                    .map_err(|error| match error.kind() {
                        io::ErrorKind::UnexpectedEof => StoreError::LocalFileChanged { path: path.clone() },
                        _ => local::read_error(path, error),
                    })?;
                Ok(buffer.into())
            }
        }
    }

    /// Hashes everything once: the whole and each part.
    fn plan(&self, size_bytes: u64, part_bytes: u64) -> Result<Plan, StoreError> {
        let mut whole = Sha256Hasher::new();
        let mut digests = Vec::new();
        let mut begin = 0;
        let mut reader = match self {
            Self::Memory(bytes) => Reader::Memory(bytes),
            Self::File { file, .. } => Reader::File { file, offset: 0 },
        };
        while begin < size_bytes {
            let end = (begin + part_bytes).min(size_bytes);
            digests.push(self.hash_part(&mut reader, end - begin, &mut whole)?);
            begin = end;
        }
        Ok(Plan {
            info: whole.finish(),
            part_bytes,
            digests,
        })
    }

    fn hash_part(
        &self,
        reader: &mut Reader<'_>,
        bytes: u64,
        whole: &mut Sha256Hasher,
    ) -> Result<Sha256, StoreError> {
        let mut part = Sha256Hasher::new();
        let mut buffer = vec![0; HASH_BUFFER_BYTES];
        while part.size_bytes() < bytes {
            let wanted = (bytes - part.size_bytes()).min(HASH_BUFFER_BYTES as u64) as usize;
            let count = match (reader.read(&mut buffer[..wanted]), self) {
                (Ok(0), Self::File { path, .. }) => {
                    return Err(StoreError::LocalFileChanged { path: path.clone() });
                }
                (Ok(count), _) => count,
                (Err(error), _) if error.kind() == io::ErrorKind::Interrupted => continue,
                (Err(error), Self::File { path, .. }) => return Err(local::read_error(path, error)),
                (Err(error), Self::Memory(_)) => return Err(local::read_error(Path::new("memory"), error)),
            };
            part.update(&buffer[..count]);
            whole.update(&buffer[..count]);
        }
        Ok(part.finish().sha256)
    }
}

/// Reads from the beginning without moving the position of a file that others use.
enum Reader<'a> {
    Memory(&'a [u8]),
    File { file: &'a File, offset: u64 },
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Memory(bytes) => bytes.read(buffer),
            Self::File { file, offset } => {
                let count = file.read_at(buffer, *offset)?;
                *offset += count as u64;
                Ok(count)
            }
        }
    }
}

/// An upload in parts that was begun. Dropped while open, it is aborted in the background: parts of abandoned
/// uploads cost money and no listing shows them.
#[derive(Debug)]
pub(super) struct Upload {
    inner: Arc<Inner>,
    key: String,
    pub(super) id: String,
    open: bool,
}

impl Upload {
    /// Aborts the upload unless it was completed. A failure is only logged: the caller's own result counts, and
    /// deleting the job's prefix removes what is left.
    pub(super) async fn abort(mut self) {
        if std::mem::take(&mut self.open) {
            log_abort(&self.key, self.inner.abort_upload(&self.key, &self.id).await);
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        if self.open {
            let (inner, key, id) = (Arc::clone(&self.inner), self.key.clone(), self.id.clone());
            runtime.spawn(async move { log_abort(&key, inner.abort_upload(&key, &id).await) });
        }
    }
}

fn log_abort(key: &str, result: Result<(), StoreError>) {
    if let Err(error) = result {
        tracing::warn!(key, category = error.category(), %error, "an unfinished upload could not be aborted");
    }
}
