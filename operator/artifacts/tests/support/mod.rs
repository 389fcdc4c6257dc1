//! What the tests of both stores share.
#![allow(dead_code, reason = "each test target uses its own part")]

pub(crate) mod behaviours;
pub(crate) mod disk;
pub(crate) mod minio;
pub(crate) mod proxy;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prover_artifacts::{ArtifactStore, Key, Prefix, RetryPolicy, StoreOptions};
use tempfile::TempDir;

/// A store of its own for one test, and a folder for local files.
pub(crate) struct Fixture {
    pub(crate) store: Arc<dyn ArtifactStore>,
    pub(crate) local: TempDir,
    /// Held until the end of the test.
    pub(crate) guard: Option<TempDir>,
}

/// Small parts, so that a test of parts needs no gigabyte, and short waits.
pub(crate) fn options() -> StoreOptions {
    StoreOptions {
        retry: RetryPolicy {
            first_wait: Duration::from_millis(5),
            longest_wait: Duration::from_millis(50),
            ..RetryPolicy::default()
        },
        multipart_threshold_bytes: 6 << 20,
        part_bytes: 5 << 20,
        parts_in_flight: 3,
        ..StoreOptions::default()
    }
}

pub(crate) fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

pub(crate) fn prefix(text: &str) -> Prefix {
    Prefix::new(text).unwrap()
}

/// Content that differs everywhere, so that exchanged or missing parts are noticed.
pub(crate) fn content(length: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}
