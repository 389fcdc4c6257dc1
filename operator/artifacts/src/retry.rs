//! Tries again with exponential backoff and full jitter, within named limits.
//! Does not decide what may be tried again: [`StoreError::retry`] does.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::counters::Counters;
use crate::error::{Retry, StoreError};

/// The limits of trying again. Waits are drawn evenly between zero and a bound that doubles with each try,
/// so that a thousand workers that failed together do not come back together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The most tries of one request or operation, the first one included; at least 1.
    pub attempts: u32,
    /// The most fetches of one object whose content differs: one that is damaged in the store stays so.
    pub mismatch_attempts: u32,
    /// Bound of the first wait.
    pub first_wait: Duration,
    /// Bound that the doubling stops at. A store that names a time itself is never waited for longer than this.
    pub longest_wait: Duration,
    /// No further try begins later than this after the first one.
    pub total: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 8,
            mismatch_attempts: 3,
            first_wait: Duration::from_millis(100),
            longest_wait: Duration::from_secs(20),
            total: Duration::from_secs(120),
        }
    }
}

/// The source of randomness, so that tests decide it.
pub trait Jitter: Send + Sync + fmt::Debug {
    /// A number from 0 up to 1.
    fn fraction(&self) -> f64;
}

/// The jitter of production: the thread's random generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct RandomJitter;

impl Jitter for RandomJitter {
    fn fraction(&self) -> f64 {
        rand::random()
    }
}

/// What a store needs to try again.
#[derive(Debug, Clone)]
pub(crate) struct Retrier {
    policy: RetryPolicy,
    jitter: Arc<dyn Jitter>,
    counters: Arc<Counters>,
}

impl Retrier {
    pub(crate) fn new(policy: RetryPolicy, jitter: Arc<dyn Jitter>, counters: Arc<Counters>) -> Self {
        Self {
            policy,
            jitter,
            counters,
        }
    }

    /// Begins one call with retries: try, pass the result to [`Tries::settle`], and try again if it answers none.
    pub(crate) fn start(&self) -> Tries<'_> {
        Tries {
            retrier: self,
            start: Instant::now(),
            failures: 0,
            mismatches: 0,
        }
    }
}

/// The tries of one call. A loop and not a closure, since async closures can't yet be sent between threads.
#[derive(Debug)]
pub(crate) struct Tries<'a> {
    retrier: &'a Retrier,
    start: Instant,
    failures: u32,
    mismatches: u32,
}

impl Tries<'_> {
    /// Answers the result if it is final. Else waits and answers none: it is time for the next try.
    pub(crate) async fn settle<T>(&mut self, result: Result<T, StoreError>) -> Option<Result<T, StoreError>> {
        let error = match result {
            Ok(value) => return Some(Ok(value)),
            Err(error) => error,
        };
        self.mismatches += u32::from(matches!(error, StoreError::ChecksumMismatch { .. }));
        let Some(wait) = self.wait_after(&error) else {
            return Some(Err(error));
        };
        self.failures += 1;
        self.retrier.counters.retry(&error);
        tracing::debug!(category = error.category(), ?wait, %error, "the store is tried again");
        sleep(wait).await;
        None
    }

    /// How many tries failed so far.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    fn wait_after(&self, error: &StoreError) -> Option<Duration> {
        let policy = &self.retrier.policy;
        if self.failures + 1 >= policy.attempts || self.mismatches >= policy.mismatch_attempts.max(1) {
            return None;
        }
        let doubled = policy
            .first_wait
            .saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        let bound = doubled.min(policy.longest_wait);
        let jittered = bound.mul_f64(self.retrier.jitter.fraction().clamp(0.0, 1.0));
        let wait = match error.retry() {
            Retry::Never => return None,
            Retry::Backoff => jittered,
            // The jitter comes on top: everybody was told the same time.
            Retry::After(after) => (after + jittered).min(policy.longest_wait),
        };
        (self.start.elapsed() + wait <= policy.total).then_some(wait)
    }
}
