//! When the tasks of a job became ready, began and ended, seen by whoever runs them; the same for all schedulers.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prover_bench::graph::{Node, join_tree};
use prover_bench::statistics::{Percentiles, start_delays};

/// Times of one job after the other.
#[derive(Debug)]
pub(crate) struct Tracker {
    pub(crate) nodes: Vec<Node>,
    pub(crate) dependents: Vec<Vec<u32>>,
    begun: Instant,
    times: Mutex<Times>,
}

#[derive(Debug, Default)]
struct Times {
    /// Dependencies that have not ended, and the submission.
    missing: Vec<u8>,
    ready_at: Vec<u64>,
    ready: Vec<u64>,
    free: Vec<u64>,
    started: Vec<u64>,
    from_ready: Vec<f64>,
    delays: Vec<f64>,
}

impl Tracker {
    /// For jobs of 2^`exponent` segments.
    pub(crate) fn new(exponent: u32) -> Tracker {
        let nodes = join_tree(1 << exponent);
        let mut dependents = vec![Vec::new(); nodes.len()];
        for (place, node) in nodes.iter().enumerate() {
            for other in &node.depends_on {
                dependents[*other].push(place as u32);
            }
        }
        Tracker {
            nodes,
            dependents,
            begun: Instant::now(),
            times: Mutex::default(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job begins: all slots are free and nothing is ready.
    pub(crate) fn begin(&self, slots: usize) {
        let now = self.now();
        let mut times = self.times();
        times.missing = self
            .nodes
            .iter()
            .map(|node| node.depends_on.len() as u8 + 1)
            .collect();
        times.ready_at = vec![0; self.nodes.len()];
        times.ready.clear();
        times.started.clear();
        times.free = vec![now; slots];
    }

    /// A job is over.
    pub(crate) fn end(&self) {
        let mut times = self.times();
        let Times {
            ready, free, started, ..
        } = &mut *times;
        let delays = start_delays(ready, free, started);
        times.delays.extend(delays);
    }

    /// Tasks are submitted.
    pub(crate) fn submitted(&self, places: Range<usize>) {
        let now = self.now();
        let mut times = self.times();
        for place in places {
            one_less(&mut times, place, now);
        }
    }

    /// A task begins.
    pub(crate) fn started(&self, place: usize) {
        let now = self.now();
        let mut times = self.times();
        times.started.push(now);
        let waited = now.saturating_sub(times.ready_at[place]);
        times.from_ready.push(waited as f64);
    }

    /// A task ends: its slot is free.
    pub(crate) fn ended(&self, place: usize) {
        let now = self.now();
        let mut times = self.times();
        times.free.push(now);
        for dependent in &self.dependents[place] {
            one_less(&mut times, *dependent as usize, now);
        }
    }

    /// Forgets what was measured so far.
    pub(crate) fn forget(&self) {
        let mut times = self.times();
        times.from_ready.clear();
        times.delays.clear();
    }

    /// From (ready and a slot free) to running, and from ready to running, in milliseconds.
    pub(crate) fn percentiles(&self) -> (Percentiles, Percentiles) {
        let mut times = self.times();
        let delays = std::mem::take(&mut times.delays);
        let from_ready = std::mem::take(&mut times.from_ready);
        (
            Percentiles::of(delays).scaled(1e-6),
            Percentiles::of(from_ready).scaled(1e-6),
        )
    }
}

/// One more of what a task waits for is there.
fn one_less(times: &mut Times, place: usize, now: u64) {
    times.missing[place] -= 1;
    if times.missing[place] == 0 {
        times.ready.push(now);
        times.ready_at[place] = now;
    }
}
