//! Numbers made of many numbers, and repeatable randomness.

/// Percentiles of measured spans, in the unit of the spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Percentiles {
    /// How many there were.
    pub count: usize,
    /// Mean.
    pub mean: f64,
    /// Half of them are at most this.
    pub p50: f64,
    /// 99 % of them are at most this.
    pub p99: f64,
    /// The highest.
    pub highest: f64,
}

impl Percentiles {
    /// Percentiles of spans in any order; all zero where there are none.
    #[must_use]
    pub fn of(mut spans: Vec<f64>) -> Percentiles {
        spans.sort_by(f64::total_cmp);
        let Some(highest) = spans.last().copied() else {
            return Percentiles::default();
        };
        // The nearest rank: the smallest that at least this share is not above.
        let rank = |share: f64| spans[((share * spans.len() as f64).ceil() as usize).max(1) - 1];
        Percentiles {
            count: spans.len(),
            mean: spans.iter().sum::<f64>() / spans.len() as f64,
            p50: rank(0.5),
            p99: rank(0.99),
            highest,
        }
    }

    /// The same in another unit.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Percentiles {
        Percentiles {
            count: self.count,
            mean: self.mean * factor,
            p50: self.p50 * factor,
            p99: self.p99 * factor,
            highest: self.highest * factor,
        }
    }
}

/// Splitmix64: the same seed gives the same numbers everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers that follow from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below a bound, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }
}

/// How long each start came after there was both a ready task and a free slot: the n-th start against the n-th moment
/// at which a scheduler that takes no time would have started something, given when tasks became ready and slots free.
/// The mean is exact whatever the order of starts; the times are in any unit and any order.
#[must_use]
pub fn start_delays(ready: &mut [u64], free: &mut [u64], started: &mut [u64]) -> Vec<f64> {
    ready.sort_unstable();
    free.sort_unstable();
    started.sort_unstable();
    ready
        .iter()
        .zip(free.iter())
        .zip(started.iter())
        .map(|((ready, free), started)| started.saturating_sub(*ready.max(free)) as f64)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_nearest_ranks() {
        let percentiles = Percentiles::of((1..=200).rev().map(f64::from).collect());
        assert_eq!(
            (percentiles.p50, percentiles.p99, percentiles.highest),
            (100.0, 198.0, 200.0)
        );
        assert_eq!(Percentiles::of(vec![7.0]).p99, 7.0);
    }

    #[test]
    fn a_start_is_late_by_what_it_waits_with_a_task_ready_and_a_slot_free() {
        // Two slots are free at 0; tasks are ready at 5 and 6, and at 6 again when the first slot is free from 9 on.
        let delays = start_delays(&mut [5, 6, 6], &mut [0, 0, 9], &mut [5, 8, 10]);
        assert_eq!(delays, [0.0, 2.0, 1.0]);
    }
}
