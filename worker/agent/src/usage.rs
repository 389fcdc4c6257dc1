//! Time on a device and of its processor, divided among the attempts that overlap: sums never exceed the clock.
//! Pure: readings are handed in.

use std::collections::BTreeMap;
use std::time::Duration;

/// What one attempt has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) device: Duration,
    pub(crate) cpu: Duration,
}

/// The running attempts of one device.
#[derive(Debug, Default)]
pub(crate) struct SharedClock {
    running: BTreeMap<u64, Share>,
    /// Last readings: time since the agent's start, and processor time of the child.
    last: Option<(Duration, Duration)>,
}

impl SharedClock {
    /// Divides what has passed since the last reading. Answers with the time for which anything ran.
    pub(crate) fn read(&mut self, now: Duration, cpu: Option<Duration>) -> Duration {
        let (then, cpu_then) = self.last.unwrap_or((now, Duration::ZERO));
        // A child that ended or was started anew has no reading, or a smaller one.
        let cpu = cpu.unwrap_or(cpu_then);
        let (passed, cpu_passed) = (now.saturating_sub(then), cpu.saturating_sub(cpu_then));
        self.last = Some((now, cpu));
        let Ok(count @ 1..) = u32::try_from(self.running.len()) else {
            return Duration::ZERO;
        };
        for share in self.running.values_mut() {
            share.device += passed / count;
            share.cpu += cpu_passed / count;
        }
        passed
    }

    /// An attempt starts; the clock must have been read just before.
    pub(crate) fn start(&mut self, attempt: u64) {
        self.running.insert(attempt, Share::default());
    }

    /// An attempt ends; the clock must have been read just before.
    pub(crate) fn end(&mut self, attempt: u64) -> Share {
        self.running.remove(&attempt).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn overlapping_attempts_share_the_time_in_which_they_overlap() {
        let mut clock = SharedClock::default();
        clock.read(seconds(100), Some(seconds(10)));
        clock.start(1);
        clock.read(seconds(110), Some(seconds(30)));
        clock.start(2);
        clock.read(seconds(130), Some(seconds(50)));
        let first = clock.end(1);
        clock.read(seconds(135), Some(seconds(51)));
        let second = clock.end(2);
        assert_eq!(
            first,
            Share {
                device: seconds(20),
                cpu: seconds(30)
            }
        );
        assert_eq!(
            second,
            Share {
                device: seconds(15),
                cpu: seconds(11)
            }
        );
        assert_eq!(first.device + second.device, seconds(35));
    }

    #[test]
    fn idle_time_is_nobodys_and_a_new_childs_smaller_reading_costs_nothing() {
        let mut clock = SharedClock::default();
        clock.read(seconds(0), Some(seconds(40)));
        assert_eq!(clock.read(seconds(50), Some(seconds(40))), Duration::ZERO);
        clock.start(1);
        assert_eq!(clock.read(seconds(51), Some(seconds(2))), seconds(1));
        assert_eq!(
            clock.end(1),
            Share {
                device: seconds(1),
                cpu: Duration::ZERO
            }
        );
    }
}
