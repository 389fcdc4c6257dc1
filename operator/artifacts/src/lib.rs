//! The artifact store: bytes named by key, checked by hash, over a folder or over S3.
//!
//! Owns keys, streaming, checksums, retries and conditional creation. Does not own which name is bound to which
//! key and who still refers to it: the scheduling core decides that.
//!
//! Three promises hold for every store:
//! - An object is created whole or not at all, and never replaced: [`Condition`] says what an existing one means.
//! - A read is checked against the expected size and SHA-256 before the caller sees a file; a difference is the
//!   retryable [`StoreError::ChecksumMismatch`], never a wrong proof.
//! - Memory is bounded by [`StoreOptions`], whatever the size of the object.

mod buffers;
mod counters;
mod error;
mod folder;
mod hash;
mod key;
mod local;
mod retry;
mod s3;
mod store;
#[cfg(test)]
mod tests;
mod url;

pub use counters::{Counters, CountersSnapshot, Operation, Request};
pub use error::{Cause, Retry, StoreError};
pub use folder::FolderStore;
pub use hash::{ObjectInfo, Sha256, Sha256Hasher, Sha256ParseError};
pub use key::{Key, MAX_KEY_BYTES, MAX_SEGMENT_BYTES, Prefix};
pub use retry::{Jitter, RandomJitter, RetryPolicy};
pub use s3::S3Store;
pub use store::{
    ArtifactStore, Condition, ListedObject, Listing, MAX_LIST_OBJECTS, StaticCredentials, StoreCapabilities,
    StoreOptions, open, open_with,
};
pub use url::{S3Location, StoreUrl};
