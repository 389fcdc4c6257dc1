//! When something that failed is tried again.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::Rng;

use crate::ClusterKey;

/// First delay after a failure.
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// Longest delay between two tries.
const LONGEST_DELAY: Duration = Duration::from_secs(120);
/// Failures after which the delay grows no more.
const LONGEST_RUN: u32 = 16;

/// When something that failed is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Only after the object changed.
    Never,
    /// After this time.
    After(Duration),
    /// After a time that grows with every failure in a row.
    Backoff,
}

/// The delay before the next try after `failures` failures in a row. `share`, from 0 to 1, spreads those that failed
/// at the same moment: between half the delay and the whole of it.
#[must_use]
pub fn delay(failures: u32, share: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(LONGEST_RUN);
    let longest = FIRST_DELAY.saturating_mul(1 << doublings).min(LONGEST_DELAY);
    longest.mul_f64(0.5 + share.clamp(0.0, 1.0) / 2.0)
}

/// Failures in a row, per object.
#[derive(Debug, Default)]
pub struct Failures(Mutex<BTreeMap<ClusterKey, u32>>);

impl Failures {
    /// Counts a failure and answers when to try again; none if only a change can help.
    pub fn failed(&self, key: &ClusterKey, retry: Retry) -> Option<Duration> {
        let failures = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let failures = all.entry(key.clone()).or_insert(0);
            *failures = failures.saturating_add(1);
            *failures
        };
        match retry {
            Retry::Never => None,
            Retry::After(delay) => Some(delay),
            Retry::Backoff => Some(delay(failures, rand::rng().random())),
        }
    }

    /// Forgets the failures of an object that went well, or is gone.
    pub fn succeeded(&self, key: &ClusterKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ClusterKey {
        ClusterKey {
            namespace: "proofs".to_owned(),
            name: "main".to_owned(),
        }
    }

    #[test]
    fn delays_double_up_to_the_longest_and_are_spread_over_their_upper_half() {
        assert_eq!(delay(1, 1.0), Duration::from_millis(500));
        assert_eq!(delay(1, 0.0), Duration::from_millis(250));
        assert_eq!(delay(4, 1.0), Duration::from_secs(4));
        assert_eq!(delay(100, 1.0), LONGEST_DELAY);
        assert_eq!(delay(u32::MAX, 0.0), LONGEST_DELAY / 2);
    }

    #[test]
    fn failures_in_a_row_wait_longer_until_one_goes_well() {
        let failures = Failures::default();
        let first = failures.failed(&key(), Retry::Backoff).unwrap();
        for _ in 0..5 {
            failures.failed(&key(), Retry::Backoff);
        }
        assert!(failures.failed(&key(), Retry::Backoff).unwrap() > first * 4);
        failures.succeeded(&key());
        assert!(failures.failed(&key(), Retry::Backoff).unwrap() <= FIRST_DELAY);
    }

    #[test]
    fn what_only_a_change_can_mend_is_not_tried_again() {
        let failures = Failures::default();
        assert_eq!(failures.failed(&key(), Retry::Never), None);
        let after = Duration::from_secs(7);
        assert_eq!(failures.failed(&key(), Retry::After(after)), Some(after));
    }
}
