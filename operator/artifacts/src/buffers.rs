//! The memory that uploads may hold at once. Does not allocate: it hands out the right to.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::counters::Counters;

/// Buffers are counted in units of this, so that their sum fits the semaphore.
const UNIT_BYTES: u64 = 4 << 10;

/// A bound on the bytes of upload buffers of one store.
#[derive(Debug)]
pub(crate) struct BufferPool {
    semaphore: Arc<Semaphore>,
    units: u32,
    counters: Arc<Counters>,
}

/// The right to hold a buffer; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct BufferLease {
    bytes: u64,
    counters: Arc<Counters>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl BufferPool {
    pub(crate) fn new(bytes: u64, counters: Arc<Counters>) -> Self {
        let units = units(bytes).min(u32::MAX >> 4);
        Self {
            semaphore: Arc::new(Semaphore::new(units as usize)),
            units,
            counters,
        }
    }

    /// The most that may be held at once.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.units) * UNIT_BYTES
    }

    /// Waits for the right to hold this many bytes, which is at most [`BufferPool::bytes`].
    pub(crate) async fn acquire(&self, bytes: u64) -> BufferLease {
        assert!(
            bytes <= self.bytes(),
            "a buffer of {bytes} bytes is larger than the pool"
        );
        // The semaphore is never closed, so there is always a permit.
        let permit = Arc::clone(&self.semaphore)
            .acquire_many_owned(units(bytes))
            .await
            .ok();
        self.counters.buffered(bytes);
        BufferLease {
            bytes,
            counters: Arc::clone(&self.counters),
            _permit: permit,
        }
    }
}

impl Drop for BufferLease {
    fn drop(&mut self) {
        self.counters.unbuffered(self.bytes);
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES).max(1)).unwrap_or(u32::MAX)
}
