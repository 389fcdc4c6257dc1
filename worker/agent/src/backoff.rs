//! Waits that double, with jitter, so that many agents never come back at the same moment.

use std::time::Duration;

use rand::Rng;

/// The next wait of a loop that tries again.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// It went well: begin again with the shortest wait.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }

    /// A wait between half and the whole of the present step; the step doubles.
    pub(crate) fn next(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.longest);
        step.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_again_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        for step in [100, 200, 350, 350] {
            let wait = backoff.next();
            assert!(
                wait <= Duration::from_millis(step),
                "{wait:?} is longer than {step} ms"
            );
            assert!(
                wait >= Duration::from_millis(step / 2),
                "{wait:?} is shorter than half of {step} ms"
            );
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(100));
    }
}
