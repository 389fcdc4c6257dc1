//! Which faults a run has and how strong they are: drawn from its seed, so that each run has a few of them in full
//! strength instead of all of them a little (swarm testing).

use crate::random::Random;

/// Everything that goes wrong. Times are means in milliseconds, 0 is never; chances are per thousand.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// An agent process dies and is started again in its pod.
    pub(crate) agent_crash: u64,
    /// A pod is deleted; another one takes its place.
    pub(crate) pod_gone: u64,
    /// When most pods go within a second.
    pub(crate) spot_wave: Option<u64>,
    /// A worker stops for a while and goes on.
    pub(crate) worker_pause: u64,
    /// A worker is asked to drain.
    pub(crate) drain: u64,
    /// A device becomes unusable for a while.
    pub(crate) device_change: u64,
    /// The share of slow workers.
    pub(crate) slow_workers: u64,
    /// A stream breaks.
    pub(crate) stream_break: u64,
    /// Nothing passes between a worker and a coordinator for a while.
    pub(crate) partition: u64,
    /// A coordinator dies and is started again.
    pub(crate) coordinator_crash: u64,
    /// Both coordinators die at once.
    pub(crate) both_crash: Option<u64>,
    /// A coordinator stops for a while and goes on as if nothing had been.
    pub(crate) coordinator_pause: u64,
    /// The API server restarts.
    pub(crate) api_restart: u64,
    /// An API call fails, or its answer is lost.
    pub(crate) api_error: u64,
    /// Somebody else writes a job between a read and the write.
    pub(crate) api_conflict: u64,
    /// A request to the store fails.
    pub(crate) store_error: u64,
    /// A request to the store is carried out, but its answer is lost.
    pub(crate) store_lost_answer: u64,
    /// A list of the store misses what was written last.
    pub(crate) stale_list: u64,
    /// The store is away for a while.
    pub(crate) store_outage: u64,
    /// An attempt fails and may be tried again.
    pub(crate) attempt_failure: u64,
    /// A child dies with all that it runs.
    pub(crate) child_crash: u64,
    /// A child dies of its memory.
    pub(crate) child_out_of_memory: u64,
    /// Some jobs have a segment that kills every child.
    pub(crate) poison: bool,
    /// Some jobs have a segment that needs more device memory than it declares.
    pub(crate) out_of_memory: bool,
    /// Most that the clock of a coordinator differs from the true time.
    pub(crate) clock_skew: u64,
    /// Users cancel, suspend, set deadlines and change priorities.
    pub(crate) fickle_users: bool,
    /// Messages take up to this long.
    pub(crate) latency: u64,
    /// Store requests take up to this long.
    pub(crate) store_latency: u64,
}

impl Faults {
    pub(crate) fn draw(random: &mut Random) -> Faults {
        let mut faults = Faults {
            latency: *random.pick(&[1, 2, 5, 20, 200]),
            store_latency: *random.pick(&[5, 20, 100, 500]),
            ..Faults::default()
        };
        // One run in sixteen has no fault at all: what fails there is plain wrong.
        if random.chance(60) {
            return faults;
        }
        let share = *random.pick(&[150, 300, 500]);
        let mut every = |shortest: u64, longest: u64| {
            let on = random.chance(share);
            let mean = random.between(shortest, longest);
            if on { mean } else { 0 }
        };
        faults.agent_crash = every(3_000, 40_000);
        faults.pod_gone = every(5_000, 60_000);
        faults.worker_pause = every(5_000, 40_000);
        faults.drain = every(10_000, 60_000);
        faults.device_change = every(5_000, 40_000);
        faults.stream_break = every(500, 20_000);
        faults.partition = every(5_000, 40_000);
        faults.coordinator_crash = every(5_000, 40_000);
        faults.coordinator_pause = every(5_000, 40_000);
        faults.api_restart = every(10_000, 60_000);
        faults.store_outage = every(10_000, 60_000);
        faults.slow_workers = every(100, 600);
        faults.api_error = every(20, 300);
        faults.api_conflict = every(50, 400);
        faults.store_error = every(5, 200);
        faults.store_lost_answer = every(5, 200);
        faults.stale_list = every(50, 600);
        faults.attempt_failure = every(10, 150);
        faults.child_crash = every(5, 100);
        faults.child_out_of_memory = every(5, 60);
        faults.clock_skew = every(10, 3_000);
        faults.poison = random.chance(share);
        faults.out_of_memory = random.chance(share);
        faults.fickle_users = random.chance(500);
        if random.chance(share) {
            faults.spot_wave = Some(random.between(5_000, 40_000));
        }
        if random.chance(share) {
            faults.both_crash = Some(random.between(5_000, 40_000));
        }
        faults
    }

    /// What is left when everything heals: delays, nothing that fails.
    pub(crate) fn healed(&self) -> Faults {
        Faults {
            latency: self.latency.min(20),
            store_latency: self.store_latency.min(100),
            ..Faults::default()
        }
    }
}
