//! The one place that reads the clock, so that everything else can be tested with a time of its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Tells the time in milliseconds since the Unix epoch. Two readings of one clock never go backwards.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Milliseconds since the Unix epoch.
    fn now_milliseconds(&self) -> u64;
}

/// The machine's clock: its wall time when it was made, moved on by its monotonic clock, so that a corrected
/// wall clock never makes a lease expire or live for ever.
#[derive(Debug)]
pub struct SystemClock {
    origin_milliseconds: u64,
    started: Instant,
}

impl SystemClock {
    /// Reads the wall clock once.
    #[must_use]
    pub fn new() -> Self {
        // A clock before 1970 has no meaning here and reads as 1970.
        let origin = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        SystemClock {
            origin_milliseconds: u64::try_from(origin.as_millis()).unwrap_or(u64::MAX),
            started: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now_milliseconds(&self) -> u64 {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.origin_milliseconds.saturating_add(elapsed)
    }
}

/// A clock that stands still until it is moved, for tests.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// Starts at this time.
    #[must_use]
    pub fn at(milliseconds: u64) -> Self {
        ManualClock(AtomicU64::new(milliseconds))
    }

    /// Moves the clock on.
    pub fn advance(&self, milliseconds: u64) {
        self.0.fetch_add(milliseconds, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_milliseconds(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_starts_at_the_wall_time_and_never_goes_backwards() {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let clock = SystemClock::new();
        let first = clock.now_milliseconds();
        assert!(first >= wall, "{first} is before {wall}");
        assert!(first - wall < 10_000, "{first} is far from {wall}");
        assert!(clock.now_milliseconds() >= first);
    }

    #[test]
    fn a_manual_clock_moves_only_when_it_is_moved() {
        let clock = ManualClock::at(5);
        assert_eq!(clock.now_milliseconds(), 5);
        clock.advance(7);
        assert_eq!(clock.now_milliseconds(), 12);
    }
}
