//! Whether a job can be done before its deadline: what is known of its work, of the devices and of the other jobs, as
//! two bounds of its end. Owns the arithmetic and its words; changes nothing.

use crate::attempts::NO_DEVICE;
use crate::model::{JobId, Lane, Milliseconds, Timestamp};
use crate::slab::NONE;
use crate::state::State;
use crate::tasks::Stage;

/// Whether a deadline can be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feasible {
    /// Even if everything that other jobs have in the queue went first.
    Yes,
    /// Not even if it had all devices for itself.
    No,
    /// Between the two, or not known yet.
    Unknown,
}

/// What is told of a job's deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// Whether it can be met.
    pub feasible: Feasible,
    /// Short CamelCase word.
    pub reason: &'static str,
    /// The arithmetic, for the user.
    pub message: String,
}

/// What a forecast is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForecastFacts {
    /// Until the nearer one of the job's deadlines.
    pub time_left: Milliseconds,
    /// Unfinished tasks of the device lane that are known.
    pub tasks: u64,
    /// Their device time at the means of their types, less what they have run.
    pub work: Milliseconds,
    /// Longest chain of unfinished tasks at the same means.
    pub chain: Milliseconds,
    /// Types of unfinished tasks of which no attempt was measured: their time is missing in work and chain.
    pub unmeasured: Vec<String>,
    /// Whether its planner is done, so that all tasks are known.
    pub planned: bool,
    /// Devices that it could have now.
    pub devices: u64,
    /// Devices that there can be at most.
    pub devices_at_most: u64,
    /// Device time that other jobs have waiting and running.
    pub others: Milliseconds,
}

impl ForecastFacts {
    /// Judges them. The job ends not before its chain and its work on all devices that there can be are done, and, at
    /// worst, when the work of all others is done too on the devices that there are.
    #[must_use]
    pub fn judge(&self) -> Forecast {
        let of = |work: Milliseconds, devices: u64| Milliseconds(work.0 / devices.max(1));
        let most = self.devices_at_most.max(self.devices);
        let best = of(self.work, most).max(self.chain);
        let all = Milliseconds(self.work.0.saturating_add(self.others.0));
        let worst = Milliseconds(of(all, self.devices).0.saturating_add(self.chain.0));
        let left = seconds(self.time_left);
        let known = format!(
            "{} known tasks with {} s of devices are left, the longest chain takes {} s",
            self.tasks,
            seconds(self.work),
            seconds(self.chain)
        );
        let forecast = |feasible, reason, message| Forecast {
            feasible,
            reason,
            message,
        };
        if best > self.time_left {
            let why = if self.chain >= of(self.work, most) {
                "ChainTooLong"
            } else {
                "TooFewDevices"
            };
            let message = format!(
                "{known}: with all of {most} devices for itself the job ends in {} s at the earliest, the deadline is \
                 in {left} s",
                seconds(best)
            );
            return forecast(Feasible::No, why, message);
        }
        if !self.unmeasured.is_empty() {
            let message = format!(
                "no task of type {} was measured yet; {known}; the deadline is in {left} s",
                self.unmeasured.join(", ")
            );
            return forecast(Feasible::Unknown, "NothingMeasured", message);
        }
        if !self.planned {
            let message = format!(
                "not all tasks are known until the planner ends; {known}; the deadline is in {left} s"
            );
            return forecast(Feasible::Unknown, "PlanNotKnown", message);
        }
        if self.devices == 0 && self.tasks > 0 {
            let message = format!("no device takes its tasks now; {known}; the deadline is in {left} s");
            return forecast(Feasible::Unknown, "NoDevices", message);
        }
        let between = format!(
            "{known}; on {} devices, and with {} s of devices for other jobs, the job ends in {} to {} s; the deadline \
             is in {left} s",
            self.devices,
            seconds(self.others),
            seconds(best),
            seconds(worst)
        );
        if worst <= self.time_left {
            forecast(Feasible::Yes, "EnoughTime", between)
        } else {
            forecast(Feasible::Unknown, "DependsOnOtherJobs", between)
        }
    }
}

/// Whole seconds, rounded up: nothing that takes time takes none.
fn seconds(span: Milliseconds) -> u64 {
    span.0.div_ceil(1_000)
}

impl State {
    /// Whether a job that is not over meets its deadline; none where it has none. `devices_at_most` is what the cluster
    /// may grow to, where the shell knows. Costs time in proportion to the tasks of the job.
    pub fn forecast(&self, job: JobId, devices_at_most: Option<u64>) -> Option<Forecast> {
        Some(self.forecast_facts(job, devices_at_most)?.judge())
    }

    /// What [`State::forecast`] is made of.
    pub fn forecast_facts(&self, job: JobId, devices_at_most: Option<u64>) -> Option<ForecastFacts> {
        let job = self.jobs.find(job.0)?;
        let entry = &self.jobs[job];
        if entry.is_over() {
            return None;
        }
        let mut facts = ForecastFacts {
            time_left: self.time_left_of(job)?,
            planned: self.tasks[entry.root].stage == Stage::Succeeded,
            ..ForecastFacts::default()
        };
        self.add_work(job, &mut facts);
        let bound = self.device_bound(job);
        facts.devices = self.devices_for(job).min(bound);
        facts.devices_at_most =
            devices_at_most.map_or(facts.devices, |most| most.min(bound).max(facts.devices));
        let device_class = self.classes.entries[usize::from(entry.leaf_class)]
            .key
            .requirements
            .device_class;
        let all: u64 = self
            .queue_depth()
            .iter()
            .filter(|depth| depth.backend == entry.backend && depth.device_class == device_class)
            .map(|depth| depth.waiting_device_time.0 + depth.running_device_time.0)
            .sum();
        // Of its own tasks only those that may run are in the queue: what is not there yet is not another job's.
        facts.others = Milliseconds(all.saturating_sub(self.queued_work(job).0));
        Some(facts)
    }

    /// Until the nearer one of its deadlines. Active time counts from the start.
    fn time_left_of(&self, job: u32) -> Option<Milliseconds> {
        let entry = &self.jobs[job];
        let until = |at: Timestamp| at - self.now;
        let active = entry.policy.active_deadline.map(|limit| {
            let since = entry.active_since.map_or(0, |since| (self.now - since).0);
            Milliseconds(limit.0.saturating_sub(entry.active_before.0 + since))
        });
        entry.policy.deadline.map(until).into_iter().chain(active).min()
    }

    fn add_work(&self, job: u32, facts: &mut ForecastFacts) {
        let tasks = &self.jobs[job].tasks;
        let mut chains: Vec<u64> = vec![0; tasks.len()];
        let mut work = 0_u64;
        for (order, task) in tasks.iter().enumerate().rev() {
            let entry = &self.tasks[*task];
            if entry.stage.is_terminal() {
                continue;
            }
            let after = entry
                .dependents
                .iter()
                .map(|dependent| chains[self.tasks[*dependent].order as usize])
                .max()
                .unwrap_or(0);
            let left = self.microseconds_left(*task);
            chains[order] = after + left;
            facts.chain = facts.chain.max(Milliseconds(chains[order] / 1_000));
            let kind = &self.types.entries[entry.kind as usize];
            if entry.marker || kind.requirements.2 != Lane::Device {
                continue;
            }
            facts.tasks += 1;
            work += left;
            let name = &entry.spec.task_type;
            if kind.measurements == 0 && !facts.unmeasured.iter().any(|known| **known == **name) {
                facts.unmeasured.push(name.to_string());
            }
        }
        facts.work = Milliseconds(work / 1_000);
        facts.unmeasured.sort_unstable();
        if tasks.len() <= 1 && !facts.planned {
            facts.unmeasured.clear();
        }
    }

    /// Device time that a task still takes at the mean of its type; nothing where that is not known.
    fn microseconds_left(&self, task: u32) -> u64 {
        let entry = &self.tasks[task];
        let kind = &self.types.entries[entry.kind as usize];
        if entry.marker || kind.requirements.2 != Lane::Device || kind.measurements == 0 {
            return 0;
        }
        let run = match entry.current {
            NONE => 0,
            attempt if self.attempts[attempt].device == NO_DEVICE => 0,
            attempt => self.attempts[attempt]
                .started_at
                .map_or(0, |start| (self.now - start).0.saturating_mul(1_000)),
        };
        kind.mean_microseconds.saturating_sub(run)
    }

    /// What of a job the queue depth counts.
    fn queued_work(&self, job: u32) -> Milliseconds {
        let tasks = self.jobs[job].tasks.iter();
        let counted = tasks.filter(|task| matches!(self.tasks[**task].stage, Stage::Ready | Stage::Active));
        Milliseconds(counted.map(|task| self.microseconds_left(*task)).sum::<u64>() / 1_000)
    }

    /// Usable devices of workers that take work and could hold the job's largest task.
    fn devices_for(&self, job: u32) -> u64 {
        let leaf = 1_u64 << self.jobs[job].leaf_class;
        let workers = self.workers.iter().map(|(_, worker)| worker);
        let fitting = workers.filter(|worker| worker.fits & leaf != 0);
        let device_class = self.classes.entries[usize::from(self.jobs[job].leaf_class)]
            .key
            .requirements
            .device_class;
        fitting
            .flat_map(|worker| worker.devices.iter())
            .filter(|device| device.usable && device.slots > 0 && device.class == device_class)
            .count() as u64
    }

    /// Devices that the job may have at once by its own limit and its tenant's.
    fn device_bound(&self, job: u32) -> u64 {
        let entry = &self.jobs[job];
        let tenant = self.tenants[entry.tenant as usize]
            .policy
            .max_devices
            .map_or(u64::MAX, u64::from);
        let largest = self
            .workers
            .iter()
            .map(|(_, worker)| worker.devices.len() as u64)
            .max();
        let own = entry.policy.max_workers.map_or(u64::MAX, |workers| {
            u64::from(workers).saturating_mul(largest.unwrap_or(1))
        });
        tenant.min(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_facts() -> ForecastFacts {
        ForecastFacts {
            time_left: Milliseconds(100_000),
            tasks: 84,
            work: Milliseconds(400_000),
            chain: Milliseconds(20_000),
            unmeasured: Vec::new(),
            planned: true,
            devices: 8,
            devices_at_most: 8,
            others: Milliseconds(160_000),
        }
    }

    #[test]
    fn a_deadline_that_holds_whatever_others_have_queued_is_feasible_and_shows_why() {
        let forecast = mk_facts().judge();
        assert_eq!(
            (forecast.feasible, forecast.reason),
            (Feasible::Yes, "EnoughTime")
        );
        assert_eq!(
            forecast.message,
            "84 known tasks with 400 s of devices are left, the longest chain takes 20 s; on 8 devices, and with 160 s \
             of devices for other jobs, the job ends in 50 to 90 s; the deadline is in 100 s"
        );
    }

    #[test]
    fn each_fact_can_change_the_verdict() {
        type Change = fn(&mut ForecastFacts);
        let table: [(&str, Change, Feasible, &str); 8] = [
            (
                "more for others",
                |f| f.others = Milliseconds(900_000),
                Feasible::Unknown,
                "DependsOnOtherJobs",
            ),
            (
                "too much work",
                |f| f.work = Milliseconds(900_000),
                Feasible::No,
                "TooFewDevices",
            ),
            (
                "a long chain",
                |f| f.chain = Milliseconds(100_001),
                Feasible::No,
                "ChainTooLong",
            ),
            (
                "a type without a measurement",
                |f| f.unmeasured = vec!["join".into()],
                Feasible::Unknown,
                "NothingMeasured",
            ),
            (
                "a planner that runs",
                |f| f.planned = false,
                Feasible::Unknown,
                "PlanNotKnown",
            ),
            (
                "no device",
                |f| (f.devices, f.devices_at_most) = (0, 8),
                Feasible::Unknown,
                "NoDevices",
            ),
            (
                "no device and too much work",
                |f| (f.devices, f.devices_at_most) = (0, 2),
                Feasible::No,
                "TooFewDevices",
            ),
            (
                "devices to come",
                |f| (f.work, f.devices_at_most) = (Milliseconds(900_000), 64),
                Feasible::Unknown,
                "DependsOnOtherJobs",
            ),
        ];
        for (name, change, feasible, reason) in table {
            let mut facts = mk_facts();
            change(&mut facts);
            let forecast = facts.judge();
            assert_eq!((forecast.feasible, forecast.reason), (feasible, reason), "{name}");
        }
    }
}
