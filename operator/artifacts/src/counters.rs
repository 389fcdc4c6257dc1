//! What a store did: operations by outcome, requests by kind (each S3 request is paid), bytes and retries.
//! Does not export metrics; the process that owns the registry reads [`Counters::snapshot`].

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::StoreError;

/// A call of [`ArtifactStore`](crate::ArtifactStore).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is the method of the same name")]
pub enum Operation {
    PutFile,
    PutBytes,
    GetFile,
    GetBytes,
    FetchFile,
    Stat,
    Delete,
    DeletePrefix,
    List,
    Probe,
}

impl Operation {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::PutFile => "put_file",
            Self::PutBytes => "put_bytes",
            Self::GetFile => "get_file",
            Self::GetBytes => "get_bytes",
            Self::FetchFile => "fetch_file",
            Self::Stat => "stat",
            Self::Delete => "delete",
            Self::DeletePrefix => "delete_prefix",
            Self::List => "list",
            Self::Probe => "probe",
        }
    }
}

/// A request to an S3 service, by its name in the S3 API. The folder store makes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is the S3 operation of the same name")]
pub enum Request {
    PutObject,
    GetObject,
    HeadObject,
    DeleteObject,
    DeleteObjects,
    ListObjects,
    CreateMultipartUpload,
    UploadPart,
    CompleteMultipartUpload,
    AbortMultipartUpload,
    ListMultipartUploads,
}

impl Request {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::PutObject => "put_object",
            Self::GetObject => "get_object",
            Self::HeadObject => "head_object",
            Self::DeleteObject => "delete_object",
            Self::DeleteObjects => "delete_objects",
            Self::ListObjects => "list_objects",
            Self::CreateMultipartUpload => "create_multipart_upload",
            Self::UploadPart => "upload_part",
            Self::CompleteMultipartUpload => "complete_multipart_upload",
            Self::AbortMultipartUpload => "abort_multipart_upload",
            Self::ListMultipartUploads => "list_multipart_uploads",
        }
    }
}

/// The counters of one store since it was opened. All of them only grow, except what is in memory.
#[derive(Debug, Default)]
pub struct Counters {
    state: Mutex<CountersSnapshot>,
}

/// A copy of the counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CountersSnapshot {
    /// Calls by operation and outcome: `ok`, or the category of the error.
    pub operations: BTreeMap<(&'static str, &'static str), u64>,
    /// Requests to the S3 service by kind, tries included.
    pub requests: BTreeMap<&'static str, u64>,
    /// Tries after the first one, by the category of the error that caused them.
    pub retries: BTreeMap<&'static str, u64>,
    /// Bytes of content received from the store, tries included.
    pub bytes_read: u64,
    /// Bytes of content sent to the store, tries included.
    pub bytes_written: u64,
    /// Uploads whose checksum the store did not confirm in its answer.
    pub unconfirmed_uploads: u64,
    /// Bytes of upload buffers in memory now.
    pub buffered_bytes: u64,
    /// The most bytes of upload buffers that were in memory at once.
    pub buffered_bytes_peak: u64,
}

impl Counters {
    /// The counters now.
    pub fn snapshot(&self) -> CountersSnapshot {
        self.lock().clone()
    }

    pub(crate) fn operation<T>(&self, operation: Operation, result: &Result<T, StoreError>) {
        let outcome = result.as_ref().map_or_else(StoreError::category, |_| "ok");
        *self
            .lock()
            .operations
            .entry((operation.label(), outcome))
            .or_default() += 1;
    }

    pub(crate) fn retry(&self, error: &StoreError) {
        *self.lock().retries.entry(error.category()).or_default() += 1;
    }

    pub(crate) fn read(&self, bytes: u64) {
        self.lock().bytes_read += bytes;
    }

    pub(crate) fn written(&self, bytes: u64) {
        self.lock().bytes_written += bytes;
    }

    pub(crate) fn request(&self, request: Request) {
        *self.lock().requests.entry(request.label()).or_default() += 1;
    }

    pub(crate) fn unconfirmed_upload(&self) {
        self.lock().unconfirmed_uploads += 1;
    }

    pub(crate) fn buffered(&self, bytes: u64) {
        let mut state = self.lock();
        state.buffered_bytes += bytes;
        state.buffered_bytes_peak = state.buffered_bytes_peak.max(state.buffered_bytes);
    }

    pub(crate) fn unbuffered(&self, bytes: u64) {
        self.lock().buffered_bytes -= bytes;
    }

    fn lock(&self) -> MutexGuard<'_, CountersSnapshot> {
        // Plain numbers are valid whatever panicked between two of them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
