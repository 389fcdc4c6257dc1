//! The whole cluster in one loop over virtual time: what happens next, in which order, and what that brings.
//!
//! Owns time, the order of events, faults and users. Does not own decisions: those are the production engine's.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use prover_core::{Limits, Milliseconds};
use prover_wire::protocol::coordinator_message::Message as Down;
use prover_wire::protocol::worker_message::Message as Up;

use crate::api::Api;
use crate::check::Ledger;
use crate::faults::Faults;
use crate::model::{Content, GIB, JobModel};
use crate::network::Connection;
use crate::random::Random;
use crate::replica::Replica;
use crate::store::{Object, Store};
use crate::trace::{Trace, note};
use crate::worker::{Device, Worker};

/// Runs in a thousand with two equal jobs, of which the first one is deleted while things go on.
const TWINS: u64 = 250;
/// When the faults end, at the latest.
const LONGEST_SAFETY_PHASE: u64 = 90_000;
/// What every job may take beyond its own work after everything has healed: leases, graces, backoffs.
const PATIENCE: u64 = 400_000;
/// How long everything may take to be deleted after the last job was forgotten.
const CLEANING: u64 = 60_000;
/// Events of one run; more means that something goes round in circles.
const MOST_EVENTS: u64 = 2_000_000;

/// Everything that can happen. What belongs to a process names it: a later one does not hear of it.
#[derive(Debug)]
pub(crate) enum Happening {
    Up {
        connection: u64,
        message: Box<Up>,
    },
    Down {
        connection: u64,
        message: Box<Down>,
    },
    WorkerSideEnds {
        connection: u64,
    },
    ReplicaSideEnds {
        connection: u64,
    },
    Dial {
        place: usize,
        process: u64,
    },
    WelcomeDue {
        place: usize,
        connection: u64,
    },
    Beat {
        place: usize,
        connection: u64,
    },
    Step {
        place: usize,
        process: u64,
        attempt: u64,
        turn: u32,
    },
    StartAgent {
        place: usize,
    },
    Replica {
        replica: usize,
        incarnation: u64,
        what: crate::replica::Happening,
    },
    Store(Box<crate::log::Sent>),
    StartReplica {
        replica: usize,
    },
    Api(crate::api::Happening),
    User {
        job: usize,
        what: Wish,
    },
    Fault(Fault),
    Heal,
    Judge(crate::check::Judgement),
}

/// What a user wants of a job.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wish {
    Create,
    Cancel,
    Suspend(bool),
    Deadline(u64),
    ActiveDeadline(u64),
    Priority(i32),
    MaxWorkers(Option<u32>),
    Delete,
}

/// Faults that strike the cluster from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    AgentCrash,
    PodGone,
    SpotWave,
    WorkerPause,
    Drain,
    Drained { place: usize, process: u64 },
    DeviceChange,
    DeviceBack { place: usize, device: usize },
    StreamBreak,
    Partition,
    CoordinatorCrash,
    BothCrash,
    CoordinatorPause,
    ApiRestart,
    StoreOutage,
}

#[derive(Debug)]
struct Entry {
    at: u64,
    order: u64,
    happening: Happening,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Name of the promise.
    pub promise: &'static str,
    /// What happened.
    pub words: String,
}

/// What phase the run is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Faults strike; nothing wrong may happen.
    Safety,
    /// Everything has healed: all jobs must end.
    Liveness,
    /// All jobs have ended and are deleted: nothing may be left of them.
    Cleaning,
}

/// The cluster.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) stage: Stage,
    pub(crate) random: Random,
    pub(crate) faults: Faults,
    pub(crate) limits: Limits,
    pub(crate) log_limits: prover_log::Limits,
    pub(crate) trace: Trace,
    queue: BinaryHeap<Reverse<Entry>>,
    order: u64,
    pub(crate) events: u64,
    pub(crate) workers: Vec<Worker>,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) connections: BTreeMap<u64, Connection>,
    pub(crate) last_connection: u64,
    /// Between a worker and a coordinator nothing passes until then.
    pub(crate) partitions: BTreeMap<(usize, usize), u64>,
    pub(crate) store: Store,
    pub(crate) api: Api,
    pub(crate) jobs: Vec<JobModel>,
    pub(crate) models: BTreeMap<Arc<str>, Arc<JobModel>>,
    pub(crate) ledger: Ledger,
    pub(crate) violation: Option<Violation>,
    pods: u64,
}

impl World {
    pub(crate) fn new(seed: u64, keep_text: bool) -> World {
        let mut setting = Random::new(seed, 1);
        let mut faults = Faults::draw(&mut setting);
        let mut limits = limits(&mut setting);
        let (poison, hungry) = (faults.poison, faults.out_of_memory);
        if poison {
            // Who is quarantined must be guilty: nothing else kills children then.
            faults.child_crash = 0;
            faults.child_out_of_memory = 0;
            limits.crashes_per_task = 3;
        }
        if hungry {
            faults.child_out_of_memory = 0;
            limits.replans = 6;
        }
        let count = setting.between(1, 6) as usize;
        let mut jobs: Vec<JobModel> = (0..count)
            .map(|index| JobModel::draw(&mut setting, index, poison, hungry))
            .collect();
        let mut twins = Random::new(seed, 3);
        let deleted_at = twins.chance(TWINS).then(|| twins.between(1_000, 60_000));
        if deleted_at.is_some() {
            jobs[0].cacheable = true;
            jobs.push(jobs[0].mk_twin(count));
        }
        let places = setting.between(2, 6) as usize;
        let slots = setting.between(1, 3) as usize;
        let workers = (0..places)
            .map(|place| mk_worker(&mut setting, place, slots, faults.slow_workers))
            .collect();
        let mut world = World {
            now: 0,
            stage: Stage::Safety,
            random: Random::new(seed, 2),
            faults,
            limits,
            log_limits: crate::log::limits(&mut setting),
            trace: Trace::new(keep_text),
            queue: BinaryHeap::new(),
            order: 0,
            events: 0,
            workers,
            replicas: Vec::new(),
            connections: BTreeMap::new(),
            last_connection: 0,
            partitions: BTreeMap::new(),
            store: Store::default(),
            api: Api::default(),
            models: jobs
                .iter()
                .map(|job| (job.uid.clone(), Arc::new(job.clone())))
                .collect(),
            jobs,
            ledger: Ledger::default(),
            violation: None,
            pods: 0,
        };
        note!(world, seed, places, "seed {seed}: {:?}", world.faults);
        note!(world, seed, places, "{:?}", world.limits);
        for job in &world.jobs {
            world.trace.line(0, format_args!("{job:?}"));
        }
        world.start_replicas(&mut setting);
        for place in 0..places {
            let after = setting.between(0, 3_000);
            world.after(after, Happening::StartAgent { place });
        }
        world.plan_users(&mut setting);
        if let Some(at) = deleted_at {
            let what = Wish::Delete;
            world.after(at, Happening::User { job: 0, what });
        }
        world.plan_faults();
        let end = setting.between(20_000, LONGEST_SAFETY_PHASE);
        world.after(end, Happening::Heal);
        world
    }

    pub(crate) fn at(&mut self, at: u64, happening: Happening) {
        self.order += 1;
        let (at, order) = (at.max(self.now), self.order);
        self.queue.push(Reverse(Entry { at, order, happening }));
    }

    pub(crate) fn after(&mut self, after: u64, happening: Happening) {
        self.at(self.now + after, happening);
    }

    /// A promise is broken. The first one counts: the rest may be its consequence.
    pub(crate) fn violated(&mut self, promise: &'static str, words: String) {
        note!(self, 0, 0, "VIOLATED {promise}: {words}");
        self.violation.get_or_insert(Violation { promise, words });
    }

    /// Runs to the end or to the first violation.
    pub(crate) fn run(&mut self) {
        while self.violation.is_none() {
            let Some(Reverse(entry)) = self.queue.pop() else {
                return self.violated("liveness", "nothing happens any more".to_owned());
            };
            self.now = entry.at;
            self.events += 1;
            if self.events > MOST_EVENTS {
                return self.violated("liveness", format!("{MOST_EVENTS} events and no end"));
            }
            if let Some(until) = self.paused_until(&entry.happening) {
                // In its old order: nothing overtakes what came before it.
                self.queue.push(Reverse(Entry { at: until, ..entry }));
                continue;
            }
            self.happen(entry.happening);
            if self.stage != Stage::Safety && self.advance() {
                return;
            }
        }
    }

    /// When a process that is stopped goes on, if this is something that it would do or notice.
    fn paused_until(&self, happening: &Happening) -> Option<u64> {
        let until = match happening {
            Happening::Down { connection, .. } | Happening::WorkerSideEnds { connection } => {
                self.workers[self.connections.get(connection)?.place].paused_until
            }
            Happening::Dial { place, .. }
            | Happening::WelcomeDue { place, .. }
            | Happening::Beat { place, .. }
            | Happening::Step { place, .. } => self.workers[*place].paused_until,
            Happening::Up { connection, .. } | Happening::ReplicaSideEnds { connection } => {
                self.replicas[self.connections.get(connection)?.replica].paused_until
            }
            Happening::Replica { replica, .. } => self.replicas[*replica].paused_until,
            _ => 0,
        };
        (until > self.now).then_some(until)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Up { connection, message } => {
                let Some(known) = self.connections.get(&connection) else {
                    return;
                };
                if known.replica_open && self.now <= known.cut {
                    self.replica_hears(connection, *message);
                }
            }
            Happening::Down { connection, message } => {
                let Some(known) = self.connections.get(&connection) else {
                    return;
                };
                let place = known.place;
                let current = self.workers[place].connection == Some(connection);
                if known.worker_open && current && self.now <= known.cut {
                    self.heard(place, connection, *message);
                }
            }
            Happening::WorkerSideEnds { connection } => self.worker_side_ended(connection),
            Happening::ReplicaSideEnds { connection } => self.replica_side_ended(connection),
            Happening::Dial { place, process } => {
                if self.workers[place].up && self.workers[place].process == process {
                    self.dial(place);
                }
            }
            Happening::WelcomeDue { place, connection } => self.welcome_due(place, connection),
            Happening::Beat { place, connection } => self.beat(place, connection),
            Happening::Step {
                place,
                process,
                attempt,
                turn,
            } => {
                if self.workers[place].process == process {
                    self.step(place, attempt, turn);
                }
            }
            Happening::StartAgent { place } => {
                if !self.workers[place].up {
                    self.start_agent(place);
                }
            }
            Happening::Replica {
                replica,
                incarnation,
                what,
            } => {
                if self.replicas[replica].incarnation == incarnation {
                    self.replica_does(replica, what);
                }
            }
            Happening::Store(sent) => self.store_does(*sent),
            Happening::StartReplica { replica } => self.start_replica(replica),
            Happening::Api(what) => self.api_does(what),
            Happening::User { job, what } => self.user_wants(job, what),
            Happening::Fault(fault) => self.strike(fault),
            Happening::Heal => self.heal(),
            Happening::Judge(judgement) => self.judge(judgement),
        }
    }

    fn worker_side_ended(&mut self, connection: u64) {
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        let was_open = std::mem::replace(&mut known.worker_open, false);
        let place = known.place;
        self.forget_connection(connection);
        if was_open && self.workers[place].connection == Some(connection) {
            self.stream_ended(place);
        }
    }

    fn replica_side_ended(&mut self, connection: u64) {
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        let was_open = std::mem::replace(&mut known.replica_open, false);
        let replica = known.replica;
        self.forget_connection(connection);
        if was_open {
            self.replica_lost_stream(replica, connection);
        }
    }

    // ---- users ----

    fn plan_users(&mut self, setting: &mut Random) {
        for job in 0..self.jobs.len() {
            let at = setting.between(0, 20_000);
            self.after(
                at,
                Happening::User {
                    job,
                    what: Wish::Create,
                },
            );
            if !self.faults.fickle_users {
                continue;
            }
            for _ in 0..setting.below(3) {
                let later = at + setting.between(100, 40_000);
                let what = match setting.below(8) {
                    0 => Wish::Cancel,
                    1 => Wish::Deadline(later + setting.between(1_000, 60_000)),
                    2 => Wish::ActiveDeadline(setting.between(1, 60) * 1_000),
                    3 => Wish::Priority(setting.below(3) as i32),
                    4 => Wish::MaxWorkers(Some(setting.between(1, 2) as u32)),
                    _ => Wish::Suspend(true),
                };
                self.after(later, Happening::User { job, what });
                if matches!(what, Wish::Suspend(_)) {
                    let resumed = later + setting.between(500, 30_000);
                    let what = Wish::Suspend(false);
                    self.after(resumed, Happening::User { job, what });
                }
                if matches!(what, Wish::MaxWorkers(_)) && setting.chance(500) {
                    let what = Wish::MaxWorkers(None);
                    self.after(later + 10_000, Happening::User { job, what });
                }
            }
        }
    }

    // ---- faults ----

    fn plan_faults(&mut self) {
        let faults = self.faults.clone();
        let recurring = [
            (faults.agent_crash, Fault::AgentCrash),
            (faults.pod_gone, Fault::PodGone),
            (faults.worker_pause, Fault::WorkerPause),
            (faults.drain, Fault::Drain),
            (faults.device_change, Fault::DeviceChange),
            (faults.stream_break, Fault::StreamBreak),
            (faults.partition, Fault::Partition),
            (faults.coordinator_crash, Fault::CoordinatorCrash),
            (faults.coordinator_pause, Fault::CoordinatorPause),
            (faults.api_restart, Fault::ApiRestart),
            (faults.store_outage, Fault::StoreOutage),
        ];
        for (mean, fault) in recurring {
            self.again(mean, fault);
        }
        if let Some(at) = faults.spot_wave {
            self.after(at, Happening::Fault(Fault::SpotWave));
        }
        if let Some(at) = faults.both_crash {
            self.after(at, Happening::Fault(Fault::BothCrash));
        }
    }

    fn again(&mut self, mean: u64, fault: Fault) {
        if mean > 0 {
            let wait = self.random.wait(mean);
            self.after(wait, Happening::Fault(fault));
        }
    }

    fn strike(&mut self, fault: Fault) {
        if self.stage != Stage::Safety {
            return;
        }
        let faults = self.faults.clone();
        let place = self.random.below(self.workers.len() as u64) as usize;
        let replica = self.random.below(self.replicas.len() as u64) as usize;
        match fault {
            Fault::AgentCrash => {
                self.again(faults.agent_crash, fault);
                self.crash_agent(place);
            }
            Fault::PodGone => {
                self.again(faults.pod_gone, fault);
                self.delete_pod(place);
            }
            Fault::SpotWave => {
                for place in 0..self.workers.len() {
                    if self.random.chance(800) {
                        self.delete_pod(place);
                    }
                }
            }
            Fault::WorkerPause => {
                self.again(faults.worker_pause, fault);
                let until = self.now + *self.random.pick(&[500, 4_000, 15_000, 45_000]);
                note!(self, place, until, "w{place}: stops until {until}");
                let paused = &mut self.workers[place].paused_until;
                *paused = until.max(*paused);
            }
            Fault::Drain => {
                self.again(faults.drain, fault);
                if self.workers[place].up {
                    self.start_drain(place);
                    let process = self.workers[place].process;
                    self.after(20_000, Happening::Fault(Fault::Drained { place, process }));
                }
            }
            Fault::Drained { place, process } => {
                if self.workers[place].process == process {
                    self.delete_pod(place);
                }
            }
            Fault::DeviceChange => {
                self.again(faults.device_change, fault);
                let device = self.random.below(self.workers[place].devices.len() as u64) as usize;
                if self.workers[place].up {
                    self.change_device(place, device, false);
                    let back = self.random.between(1_000, 20_000);
                    self.after(back, Happening::Fault(Fault::DeviceBack { place, device }));
                }
            }
            Fault::DeviceBack { place, device } => {
                if self.workers[place].up && !self.workers[place].devices[device].usable {
                    self.change_device(place, device, true);
                }
            }
            Fault::StreamBreak => {
                self.again(faults.stream_break, fault);
                let at = self.random.below(self.connections.len() as u64) as usize;
                if let Some(id) = self.connections.keys().nth(at).copied() {
                    self.break_connection(id);
                }
            }
            Fault::Partition => {
                self.again(faults.partition, fault);
                self.partition(place, replica);
            }
            Fault::CoordinatorCrash => {
                self.again(faults.coordinator_crash, fault);
                self.crash_replica(replica);
            }
            Fault::BothCrash => {
                for replica in 0..self.replicas.len() {
                    self.crash_replica(replica);
                }
            }
            Fault::CoordinatorPause => {
                self.again(faults.coordinator_pause, fault);
                let until = self.now + *self.random.pick(&[500, 4_000, 12_000, 30_000]);
                note!(self, replica, until, "r{replica}: stops until {until}");
                let paused = &mut self.replicas[replica].paused_until;
                *paused = until.max(*paused);
            }
            Fault::ApiRestart => {
                self.again(faults.api_restart, fault);
                let away = self.random.between(500, 20_000);
                self.restart_api(away);
            }
            Fault::StoreOutage => {
                self.again(faults.store_outage, fault);
                let away = *self.random.pick(&[300, 2_000, 10_000, 25_000]);
                note!(self, away, 0, "the store is away for {away} ms");
                self.store.away_until = self.now + away;
            }
        }
    }

    fn partition(&mut self, place: usize, replica: usize) {
        let until = self.now + *self.random.pick(&[1_000, 6_000, 14_000, 40_000]);
        let (all_workers, all_replicas) = (self.random.chance(200), self.random.chance(400));
        note!(
            self,
            place,
            until,
            "nothing passes between w{place} and r{replica} until {until} (all workers {all_workers}, all \
             coordinators {all_replicas})"
        );
        for worker in 0..self.workers.len() {
            for other in 0..self.replicas.len() {
                if (worker == place || all_workers) && (other == replica || all_replicas) {
                    self.partitions.insert((worker, other), until);
                }
            }
        }
    }

    fn crash_agent(&mut self, place: usize) {
        if !self.workers[place].up {
            return;
        }
        self.kill_agent(place);
        if self.random.chance(500) {
            self.tell_agent_ended(place);
        }
        let after = self.random.between(200, 8_000);
        self.after(after, Happening::StartAgent { place });
    }

    /// A pod goes; another one takes its place after a while.
    fn delete_pod(&mut self, place: usize) {
        self.kill_agent(place);
        if self.random.chance(700) {
            self.tell_pod_gone(place);
        }
        self.next_pod(place);
        let after = self.random.between(1_000, 20_000);
        self.after(after, Happening::StartAgent { place });
    }

    fn next_pod(&mut self, place: usize) {
        self.pods += 1;
        let worker = &mut self.workers[place];
        worker.pod = format!("w{place}-{}", self.pods);
        worker.pod_uid = format!("uid-{}", self.pods);
        worker.paused_until = 0;
    }

    /// Everything works again from now on.
    fn heal(&mut self) {
        note!(self, 0, 0, "everything heals");
        self.stage = Stage::Liveness;
        self.faults = self.faults.healed();
        self.partitions.clear();
        self.store.away_until = self.now;
        for place in 0..self.workers.len() {
            // Who is stopped goes on when it was to: what waits for it would else be overtaken.
            self.workers[place].slowness = 100;
            if self.workers[place].draining {
                self.kill_agent(place);
                self.tell_pod_gone(place);
                self.next_pod(place);
            }
            if !self.workers[place].up {
                self.start_agent(place);
            }
            for device in 0..self.workers[place].devices.len() {
                if !self.workers[place].devices[device].usable {
                    self.change_device(place, device, true);
                }
            }
        }
        self.heal_replicas();
        self.heal_api();
        for job in 0..self.jobs.len() {
            // Nobody is suspended for ever.
            for (after, what) in [(1, Wish::Create), (50_000, Wish::Suspend(false))] {
                self.after(after, Happening::User { job, what });
            }
        }
        let work: u64 = self.jobs.iter().map(work_of).sum();
        let bound = self.now + work + PATIENCE;
        note!(self, bound, 0, "all jobs must have ended by {bound}");
        self.at(bound, Happening::Judge(crate::check::Judgement::AllEnded));
    }

    /// Goes on to the next stage when this one is done. True: the run is over.
    fn advance(&mut self) -> bool {
        match self.stage {
            Stage::Safety => false,
            Stage::Liveness => {
                if self.all_ended() {
                    note!(self, 0, 0, "all jobs have ended");
                    self.stage = Stage::Cleaning;
                    for job in 0..self.jobs.len() {
                        let what = Wish::Delete;
                        self.after(1_000, Happening::User { job, what });
                    }
                    let end = crate::check::Judgement::Clean;
                    self.after(CLEANING, Happening::Judge(end));
                }
                false
            }
            Stage::Cleaning => self.ledger.clean,
        }
    }

    /// Puts what a user gave for a job into the store.
    pub(crate) fn put_sources(&mut self, uid: &str) {
        for name in ["program", "input"] {
            let key = format!("jobs/{uid}/sources/{name}").into();
            self.store.put(&key, Object::Artifact(Content::SOURCE));
        }
    }
}

/// Time on one device that a job takes, with a few tries more than it needs.
fn work_of(job: &JobModel) -> u64 {
    let reduction = if job.hungry.is_some() { 3 } else { 0 };
    let segments = u64::from(job.segments_of(reduction));
    (job.prove_milliseconds + job.execute_milliseconds + 1_000) * 3 * (segments + 4)
}

fn limits(setting: &mut Random) -> Limits {
    Limits {
        lease: Milliseconds(*setting.pick(&[6_000, 15_000, 30_000])),
        reconnect_grace: Milliseconds(*setting.pick(&[4_000, 10_000])),
        backoff_max: Milliseconds(*setting.pick(&[4_000, 60_000])),
        infrastructure_retry_limit: 100_000,
        crashes_per_task: 1_000,
        replans: 1_000,
        prefetch_per_slot: *setting.pick(&[0, 1, 1, 2]),
        cache_entries: *setting.pick(&[8, 1_000]),
        lasting_results: *setting.pick(&[1, 1_000]),
        // Where stragglers are tried a second time, two attempts of a task may run at once, and no more.
        speculate_after_percent: *setting.pick(&[0, 0, 200]),
        speculate_share_percent: 50,
        record_facts: true,
        ..Limits::default()
    }
}

fn mk_worker(setting: &mut Random, place: usize, slots: usize, slow: u64) -> Worker {
    // The first one fits everything that there is.
    let large = place == 0 || setting.chance(300);
    let devices = (0..setting.between(1, 2))
        .map(|index| Device {
            id: format!("gpu-{index}"),
            vram_bytes: if large { 24 } else { 8 } * GIB,
            slots,
            usable: true,
            was_unusable: false,
        })
        .collect();
    let memory = if large {
        setting.between(10, 32)
    } else {
        setting.between(3, 12)
    };
    let slowness = if setting.chance(slow) {
        *setting.pick(&[200, 500, 2_000])
    } else {
        100
    };
    Worker::new(place, devices, memory * GIB, slowness)
}
