//! The model of a worker's agent and its children: it holds what it was assigned, runs it on its devices, keeps what
//! it completed until that is acknowledged, and opens its stream again whenever that breaks.
//!
//! As the real agent (`worker/agent`) does it, without its files and processes: what the coordinator can see of a
//! worker is the same.

use std::collections::BTreeMap;

use prost::Message as _;
use prover_backend::protocol::{ProofReport, SubmitTasksRequest};
use prover_wire::protocol::coordinator_message::Message as Down;
use prover_wire::protocol::worker_message::Message as Up;
use prover_wire::protocol::{self as wire, FailureClass, call};

use crate::model::{self, Content, JobModel, Kind, MARKER, PROOF, PlanStep, Work};
use crate::store::Object;
use crate::trace::note;
use crate::world::{Happening, World};

/// First and longest wait before a stream is opened again, as in the agent.
const RECONNECT_FIRST: u64 = 100;
const RECONNECT_LONGEST: u64 = 3_000;
/// Coordinators that may send a worker on to another one, in a row.
const LEADER_HOPS: u32 = 3;
/// How long a coordinator may take to welcome a worker.
const WELCOME_WITHIN: u64 = 10_000;
/// Silence of a coordinator after which a stream counts as broken.
const SILENCE: u64 = 5_000;
/// Tries to fetch an input.
const FETCH_TRIES: u32 = 3;
/// How long a stopped attempt may take to leave its device before its child is killed.
const STOP_WITHIN: u64 = 2_000;

/// A device of a worker.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) id: String,
    pub(crate) vram_bytes: u64,
    pub(crate) slots: usize,
    pub(crate) usable: bool,
    /// It was unusable once: each new stream is told how it is.
    pub(crate) was_unusable: bool,
}

/// Where an attempt is.
#[derive(Debug)]
pub(crate) enum Stage {
    Fetching {
        tries: u32,
    },
    Ready,
    Running,
    /// Its output waits for a permit or for the answer to another call.
    Calling,
    Stopping,
    Uploading,
    Reported(Box<Up>),
}

/// How a run will end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Good,
    Fails(FailureClass),
    /// The child dies, with everything that runs in it.
    Kills(FailureClass),
}

/// One attempt on its way.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) assign: wire::Assign,
    pub(crate) work: Work,
    /// Index of its device; none in the control lane.
    pub(crate) device: Option<usize>,
    pub(crate) stage: Stage,
    /// Changes with each stage, so that what was planned for an earlier one does not happen.
    turn: u32,
    end: End,
    inputs: Vec<Content>,
    /// Of a planner: what it has still to do, the last step first.
    steps: Vec<PlanStep>,
    /// Its marker is completed.
    marked: bool,
}

impl Attempt {
    fn has_started(&self) -> bool {
        !matches!(self.stage, Stage::Fetching { .. } | Stage::Ready)
    }

    pub(crate) fn is_in_child(&self) -> bool {
        matches!(self.stage, Stage::Running | Stage::Calling | Stage::Stopping)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        matches!(self.stage, Stage::Stopping)
    }
}

/// A worker: a pod and the agent process in it.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) pod: String,
    pub(crate) pod_uid: String,
    /// Counts the agent processes of all pods of this place: what was planned for an earlier one does not happen.
    pub(crate) process: u64,
    pub(crate) up: bool,
    pub(crate) devices: Vec<Device>,
    pub(crate) host_memory_bytes: u64,
    /// Times are multiplied by this and divided by 100.
    pub(crate) slowness: u64,
    pub(crate) paused_until: u64,
    pub(crate) attempts: BTreeMap<u64, Attempt>,
    pub(crate) connection: Option<u64>,
    welcomed: bool,
    told: Vec<wire::HeldAttempt>,
    heard_at: u64,
    highest_epoch: u64,
    leader: Option<usize>,
    hops: u32,
    backoff: u64,
    heartbeat_milliseconds: u64,
    heartbeats: u64,
    calls: BTreeMap<u64, wire::Call>,
    last_call: u64,
    /// Streams that this process has opened.
    streams: u64,
    pub(crate) draining: bool,
}

impl Worker {
    pub(crate) fn new(place: usize, devices: Vec<Device>, host_memory_bytes: u64, slowness: u64) -> Worker {
        Worker {
            pod: format!("w{place}"),
            pod_uid: format!("uid-w{place}"),
            process: 0,
            up: false,
            devices,
            host_memory_bytes,
            slowness,
            paused_until: 0,
            attempts: BTreeMap::new(),
            connection: None,
            welcomed: false,
            told: Vec::new(),
            heard_at: 0,
            highest_epoch: 0,
            leader: None,
            hops: 0,
            backoff: RECONNECT_FIRST,
            heartbeat_milliseconds: 1_000,
            heartbeats: 0,
            calls: BTreeMap::new(),
            last_call: 0,
            streams: 0,
            draining: false,
        }
    }

    fn held(&self) -> Vec<wire::HeldAttempt> {
        self.attempts
            .iter()
            .map(|(id, attempt)| wire::HeldAttempt {
                attempt_id: *id,
                started: attempt.has_started(),
                completed: matches!(attempt.stage, Stage::Reported(_)),
                task_id: attempt.assign.task_id,
                device_id: attempt.assign.device_id.clone(),
                attempt_number: attempt.assign.attempt_number,
                plan_epoch: attempt.assign.plan_epoch,
            })
            .collect()
    }
}

impl World {
    // ---- processes ----

    /// A new agent process begins, with nothing but its name.
    pub(crate) fn start_agent(&mut self, place: usize) {
        let worker = &mut self.workers[place];
        worker.process += 1;
        worker.up = true;
        worker.attempts.clear();
        worker.calls.clear();
        worker.connection = None;
        worker.welcomed = false;
        worker.leader = None;
        worker.hops = 0;
        worker.streams = 0;
        worker.highest_epoch = 0;
        worker.backoff = RECONNECT_FIRST;
        worker.draining = false;
        worker.paused_until = 0;
        for device in &mut worker.devices {
            device.usable = true;
            device.was_unusable = false;
        }
        let process = worker.process;
        note!(self, place, process, "w{place}: the agent starts");
        let after = self.random.between(1, 100);
        self.after(after, Happening::Dial { place, process });
    }

    /// The agent process dies: all that it had is lost, but for what is in the store.
    pub(crate) fn kill_agent(&mut self, place: usize) {
        let worker = &mut self.workers[place];
        if !worker.up {
            return;
        }
        note!(self, place, 0, "w{place}: the agent dies");
        let worker = &mut self.workers[place];
        worker.up = false;
        worker.process += 1;
        let torn: Vec<wire::Assign> = worker
            .attempts
            .values()
            .filter(|attempt| matches!(attempt.stage, Stage::Uploading))
            .map(|attempt| attempt.assign.clone())
            .collect();
        let attempts: Vec<u64> = worker.attempts.keys().copied().collect();
        worker.attempts.clear();
        for attempt in attempts {
            self.check_attempt_died(attempt);
        }
        for assign in torn {
            for name in &assign.outputs {
                let key = attempt_key(&assign, name).into();
                if !self.store.objects.contains_key(&key) {
                    self.store.put(&key, Object::Torn);
                }
            }
        }
        if let Some(connection) = self.workers[place].connection.take() {
            self.worker_side_ends(connection);
        }
    }

    // ---- the stream ----

    pub(crate) fn dial(&mut self, place: usize) {
        if self.workers[place].connection.is_some() {
            return;
        }
        let target = match self.workers[place].leader.take() {
            Some(leader) => leader,
            None => self.random.below(self.replicas.len() as u64) as usize,
        };
        let held = self.workers[place].held();
        let worker = &mut self.workers[place];
        worker.told.clone_from(&held);
        worker.welcomed = false;
        worker.streams += 1;
        let (process, connection_number) = (worker.process, worker.streams);
        let devices = worker.devices.iter().map(|device| wire::Device {
            id: device.id.clone(),
            class: wire::DeviceClass::Gpu.into(),
            product: "simulated".to_owned(),
            vram_bytes: device.vram_bytes,
            attempts_at_once: device.slots as u32,
        });
        let hello = wire::WorkerHello {
            protocol_version: prover_wire::PROTOCOL_VERSION,
            worker_id: format!("{}:{process}", worker.pod),
            worker_group: "group".to_owned(),
            host_memory_bytes: worker.host_memory_bytes,
            devices: devices.collect(),
            backend: Some(model::described(2)),
            held,
            highest_epoch: worker.highest_epoch,
            process_id: process,
            stream: connection_number,
            process_nonce: process,
            batch_messages: 0,
        };
        let connection = self.connect(place, target);
        self.workers[place].connection = Some(connection);
        self.workers[place].heard_at = self.now;
        note!(self, place, target, "w{place}: dials r{target}");
        self.send_up(connection, Up::Hello(hello));
        self.after(WELCOME_WITHIN, Happening::WelcomeDue { place, connection });
    }

    pub(crate) fn welcome_due(&mut self, place: usize, connection: u64) {
        let worker = &self.workers[place];
        if worker.connection == Some(connection) && !worker.welcomed {
            self.give_up_stream(place, connection);
        }
    }

    /// The agent closes its stream and opens another one.
    fn give_up_stream(&mut self, place: usize, connection: u64) {
        if self.workers[place].connection != Some(connection) {
            return;
        }
        note!(self, place, connection, "w{place}: gives stream {connection} up");
        self.worker_side_ends(connection);
        self.stream_ended(place);
    }

    /// The stream is closed, as the worker sees it.
    pub(crate) fn stream_ended(&mut self, place: usize) {
        let worker = &mut self.workers[place];
        worker.connection = None;
        if std::mem::take(&mut worker.welcomed) {
            worker.backoff = RECONNECT_FIRST;
        }
        let (process, hint) = (worker.process, worker.leader.is_some());
        let wait = if hint && worker.hops < LEADER_HOPS {
            worker.hops += 1;
            1
        } else {
            worker.hops = 0;
            worker.leader = None;
            let wait = worker.backoff;
            worker.backoff = (wait * 2).min(RECONNECT_LONGEST);
            wait
        };
        let wait = self.random.between(wait.div_ceil(2), wait);
        self.after(wait, Happening::Dial { place, process });
    }

    pub(crate) fn beat(&mut self, place: usize, connection: u64) {
        let worker = &mut self.workers[place];
        if worker.connection != Some(connection) {
            return;
        }
        if self.now - worker.heard_at > SILENCE.max(5 * worker.heartbeat_milliseconds) {
            return self.give_up_stream(place, connection);
        }
        worker.heartbeats += 1;
        let heartbeat = wire::Heartbeat {
            sequence: worker.heartbeats,
            attempts: worker.attempts.keys().copied().collect(),
            host_memory_used_bytes: 0,
        };
        let every = worker.heartbeat_milliseconds;
        self.send_up(connection, Up::Heartbeat(heartbeat));
        self.after(every, Happening::Beat { place, connection });
    }

    fn tell(&mut self, place: usize, message: Up) {
        let worker = &self.workers[place];
        if let Some(connection) = worker.connection.filter(|_| worker.welcomed) {
            self.send_up(connection, message);
        }
    }

    /// The coordinator says something.
    pub(crate) fn heard(&mut self, place: usize, connection: u64, message: Down) {
        let worker = &mut self.workers[place];
        worker.heard_at = self.now;
        if !worker.welcomed && !matches!(message, Down::Welcome(_) | Down::NotLeader(_)) {
            // An agent takes such a stream for broken, and would for ever.
            self.violated(
                "messages",
                format!("w{place} is told {message:?} before it is welcome"),
            );
            return self.give_up_stream(place, connection);
        }
        match message {
            Down::Welcome(welcome) => {
                if welcome.epoch < worker.highest_epoch {
                    return self.give_up_stream(place, connection);
                }
                worker.highest_epoch = welcome.epoch;
                worker.heartbeat_milliseconds = welcome.heartbeat_interval_ms.max(1);
                worker.welcomed = true;
                worker.hops = 0;
                self.welcomed(place, connection, &welcome);
            }
            Down::Assign(assign) if assign.epoch < worker.highest_epoch => {
                self.give_up_stream(place, connection);
            }
            Down::Assign(assign) => self.assigned(place, assign),
            Down::Recall(recall) => self.recalled(place, recall.attempt_id),
            Down::Stop(stop) => self.stop_attempt(place, stop.attempt_id),
            Down::Acknowledged(acknowledged) => {
                let reported = worker
                    .attempts
                    .get(&acknowledged.attempt_id)
                    .is_some_and(|attempt| matches!(attempt.stage, Stage::Reported(_)));
                if reported {
                    self.check_acknowledged(acknowledged.attempt_id, acknowledged.accepted);
                    self.forget(place, acknowledged.attempt_id);
                }
            }
            Down::Answer(answer) => self.answered(place, &answer),
            Down::TaskResult(result) => self.task_result(place, &result),
            Down::NotLeader(other) => {
                worker.leader = other
                    .address
                    .strip_prefix('r')
                    .and_then(|index| index.parse().ok());
                self.give_up_stream(place, connection);
            }
            Down::Drain(_) => self.start_drain(place),
            // Engines say each message by itself: batches are made by whoever carries them.
            Down::ChannelMessage(_) | Down::Heartbeat(_) | Down::Batch(_) => {}
        }
    }

    /// A stream is open: says what happened since its hello, what was not acknowledged, and what was not answered.
    fn welcomed(&mut self, place: usize, connection: u64, welcome: &wire::Welcome) {
        for attempt in &welcome.stop {
            self.stop_attempt(place, *attempt);
        }
        let worker = &self.workers[place];
        let told = worker.told.clone();
        let mut messages = Vec::new();
        for held in &told {
            if !worker.attempts.contains_key(&held.attempt_id) && !welcome.stop.contains(&held.attempt_id) {
                messages.push(Up::Stopped(wire::AttemptStopped {
                    attempt_id: held.attempt_id,
                }));
            }
        }
        for (id, attempt) in &worker.attempts {
            let started_before = told.iter().any(|held| held.attempt_id == *id && held.started);
            if attempt.has_started() && !started_before {
                messages.push(Up::Started(wire::AttemptStarted { attempt_id: *id }));
            }
            if let Stage::Reported(report) = &attempt.stage {
                messages.push((**report).clone());
            }
        }
        for device in worker.devices.iter().filter(|device| device.was_unusable) {
            messages.push(Up::DeviceChanged(device_changed(device)));
        }
        messages.extend(worker.calls.values().cloned().map(Up::Call));
        if worker.draining {
            messages.push(Up::Draining(wire::Draining::default()));
        }
        for message in messages {
            self.tell(place, message);
        }
        self.beat(place, connection);
    }

    // ---- attempts ----

    fn assigned(&mut self, place: usize, assign: wire::Assign) {
        let id = assign.attempt_id;
        if self.workers[place].attempts.contains_key(&id) {
            return;
        }
        let Some(work) = work_of(&assign) else {
            return self.violated("messages", format!("attempt {id} has no work that can be read"));
        };
        let worker = &mut self.workers[place];
        let device = worker
            .devices
            .iter()
            .position(|device| device.id == assign.device_id);
        note!(
            self,
            place,
            id,
            "w{place}: is assigned attempt {id}, {} of {} on {:?}",
            work.name(),
            assign.job_id,
            assign.device_id
        );
        let worker = &mut self.workers[place];
        worker.attempts.insert(
            id,
            Attempt {
                assign,
                work,
                device,
                stage: Stage::Fetching { tries: 0 },
                turn: 0,
                end: End::Good,
                inputs: Vec::new(),
                steps: Vec::new(),
                marked: false,
            },
        );
        if worker.draining {
            return self.give_back(place, id);
        }
        if device.is_some_and(|device| !worker.devices[device].usable) {
            return self.fail(place, id, FailureClass::Retryable, "DeviceUnusable");
        }
        let after = self.random.between(1, self.faults.store_latency.max(1));
        self.later(place, id, after);
    }

    /// The next step of an attempt, unless its stage changes before.
    fn later(&mut self, place: usize, id: u64, after: u64) {
        let worker = &mut self.workers[place];
        let process = worker.process;
        let Some(attempt) = worker.attempts.get_mut(&id) else {
            return;
        };
        attempt.turn += 1;
        let turn = attempt.turn;
        self.after(
            after,
            Happening::Step {
                place,
                process,
                attempt: id,
                turn,
            },
        );
    }

    pub(crate) fn step(&mut self, place: usize, id: u64, turn: u32) {
        let Some(attempt) = self.workers[place].attempts.get(&id) else {
            return;
        };
        if attempt.turn != turn {
            return;
        }
        match attempt.stage {
            Stage::Fetching { tries } => self.fetch(place, id, tries),
            Stage::Running => self.ran(place, id),
            Stage::Stopping => self.stopped(place, id),
            Stage::Uploading => self.upload(place, id),
            Stage::Ready | Stage::Calling | Stage::Reported(_) => {}
        }
    }

    fn fetch(&mut self, place: usize, id: u64, tries: u32) {
        let assign = &self.workers[place].attempts[&id].assign;
        let wanted: Vec<(String, String)> = assign
            .inputs
            .iter()
            .map(|input| (input.key.clone(), input.sha256.clone()))
            .collect();
        let mut contents = Vec::new();
        let mut problem = self.store_fails();
        for (key, sha256) in wanted {
            match self.store.get(&key) {
                Some(Object::Artifact(content)) if hex(&content.sha256()) == sha256 => contents.push(content),
                Some(_) => {
                    self.violated("artifacts", format!("{key} is not what it was bound as"));
                    problem = true;
                }
                None => {
                    self.check_missing_input(id, &key);
                    problem = true;
                }
            }
        }
        if problem {
            if tries + 1 >= FETCH_TRIES {
                return self.fail(place, id, FailureClass::Artifact, "InputMissing");
            }
            self.set_stage(place, id, Stage::Fetching { tries: tries + 1 });
            let wait = self.random.between(200, 1_000 << tries);
            return self.later(place, id, wait);
        }
        if let Some(attempt) = self.workers[place].attempts.get_mut(&id) {
            attempt.inputs = contents;
            attempt.stage = Stage::Ready;
            attempt.turn += 1;
        }
        self.start_what_can(place);
    }

    fn set_stage(&mut self, place: usize, id: u64, stage: Stage) {
        if let Some(attempt) = self.workers[place].attempts.get_mut(&id) {
            attempt.stage = stage;
            attempt.turn += 1;
        }
    }

    fn start_what_can(&mut self, place: usize) {
        let lanes = (0..self.workers[place].devices.len())
            .map(Some)
            .chain(std::iter::once(None));
        for lane in lanes {
            while let Some(id) = self.next_to_start(place, lane) {
                self.start(place, id);
            }
        }
    }

    fn next_to_start(&self, place: usize, lane: Option<usize>) -> Option<u64> {
        let worker = &self.workers[place];
        let capacity = lane.map_or(usize::MAX, |device| worker.devices[device].slots);
        let here = || {
            worker
                .attempts
                .iter()
                .filter(move |(_, attempt)| attempt.device == lane)
        };
        let running = here().filter(|(_, attempt)| attempt.is_in_child()).count();
        let alone = here().any(|(_, attempt)| attempt.is_in_child() && attempt.assign.alone);
        if running >= capacity || alone {
            return None;
        }
        // What was fetched ahead only takes a place that nobody was given.
        let given = here()
            .filter(|(_, attempt)| !attempt.has_started() && !attempt.assign.prefetch)
            .count();
        here()
            .filter(|(_, attempt)| matches!(attempt.stage, Stage::Ready))
            .filter(|(_, attempt)| !attempt.assign.prefetch || running + given < capacity)
            .filter(|(_, attempt)| !attempt.assign.alone || running == 0)
            .min_by_key(|(id, attempt)| (attempt.assign.prefetch, **id))
            .map(|(id, _)| *id)
    }

    fn start(&mut self, place: usize, id: u64) {
        let attempt = &self.workers[place].attempts[&id];
        let (work, job) = (attempt.work, attempt.assign.job_id.clone());
        let Some(model) = self.models.get(job.as_str()).cloned() else {
            return self.violated(
                "messages",
                format!("attempt {id} is of job {job}, which nobody submitted"),
            );
        };
        let (end, milliseconds) = self.fate(place, id, &model, &work);
        let slowness = self.workers[place].slowness;
        if let Some(attempt) = self.workers[place].attempts.get_mut(&id) {
            attempt.end = end;
            if work.kind == Kind::Plan {
                attempt.steps = model.plan(work.reduction);
                attempt.steps.reverse();
            }
        }
        self.set_stage(place, id, Stage::Running);
        note!(self, place, id, "w{place}: attempt {id} starts, {}", work.name());
        self.check_started(place, id);
        self.tell(place, Up::Started(wire::AttemptStarted { attempt_id: id }));
        self.later(place, id, (milliseconds * slowness / 100).max(1));
    }

    /// How a run will end, and after how long.
    fn fate(&mut self, place: usize, id: u64, model: &JobModel, work: &Work) -> (End, u64) {
        let worker = &self.workers[place];
        let attempt = &worker.attempts[&id];
        let full = if work.kind == Kind::Plan {
            model.execute_milliseconds
        } else {
            model.milliseconds(work)
        };
        let part = self.random.between(1, full.max(1));
        if model.kills(work) {
            return (End::Kills(FailureClass::ChildCrashed), part);
        }
        let vram = attempt
            .device
            .map_or(u64::MAX, |device| worker.devices[device].vram_bytes);
        if model.real_memory(work).is_some_and(|bytes| bytes > vram) {
            return (End::Fails(FailureClass::OutOfMemory), part);
        }
        let faults = &self.faults;
        let (failure, crash, memory) = (
            faults.attempt_failure,
            faults.child_crash,
            faults.child_out_of_memory,
        );
        if self.random.chance(failure) {
            return (End::Fails(FailureClass::Retryable), part);
        }
        if self.random.chance(crash) {
            let class = *self
                .random
                .pick(&[FailureClass::ChildCrashed, FailureClass::ChildHung]);
            return (End::Kills(class), part);
        }
        if self.random.chance(memory) && work.kind == Kind::Prove {
            return (End::Kills(FailureClass::ChildOutOfMemory), part);
        }
        (End::Good, full)
    }

    /// The child has something to say about an attempt that it runs.
    fn ran(&mut self, place: usize, id: u64) {
        let attempt = &self.workers[place].attempts[&id];
        match attempt.end {
            End::Fails(class) => return self.fail(place, id, class, "Simulated"),
            End::Kills(class) => return self.kill_child(place, id, class),
            End::Good => {}
        }
        let work = attempt.work;
        if work.kind == Kind::Plan {
            return self.plan_on(place, id);
        }
        let last = work.kind == Kind::Prove && work.high == work.total;
        if last && !attempt.marked && self.models[attempt.assign.job_id.as_str()].marks() {
            let request_id = MARKER.to_owned();
            let call = call::Call::CompleteMarker(wire::CompleteMarker { request_id });
            return self.call(place, id, call);
        }
        self.set_stage(place, id, Stage::Uploading);
        let after = self.random.between(1, self.faults.store_latency.max(1));
        self.later(place, id, after);
        // The device goes on while the outputs are stored.
        self.start_what_can(place);
    }

    fn kill_child(&mut self, place: usize, id: u64, class: FailureClass) {
        let device = self.workers[place].attempts[&id].device;
        let victims: Vec<u64> = self.workers[place]
            .attempts
            .iter()
            .filter(|(_, attempt)| attempt.device == device && attempt.is_in_child())
            .map(|(id, _)| *id)
            .collect();
        note!(
            self,
            place,
            id,
            "w{place}: attempt {id} kills its child and {victims:?}"
        );
        for victim in victims {
            let stopping = matches!(self.workers[place].attempts[&victim].stage, Stage::Stopping);
            if stopping {
                self.stopped(place, victim);
            } else {
                self.fail(place, victim, class, "ChildEnded");
            }
        }
    }

    /// A planner executes on: submits what it has found, waits, or is done.
    fn plan_on(&mut self, place: usize, id: u64) {
        let Some(attempt) = self.workers[place].attempts.get_mut(&id) else {
            return;
        };
        let call = match attempt.steps.pop() {
            None => return self.report_success(place, id, Vec::new(), None),
            Some(PlanStep::Submit(tasks)) => {
                let request = SubmitTasksRequest {
                    attempt_id: id,
                    tasks,
                };
                call::Call::SubmitTasks(wire::SubmitTasks {
                    encoded: request.encode_to_vec(),
                })
            }
            Some(PlanStep::Await(request_ids)) => {
                call::Call::SubscribeTasks(wire::SubscribeTasks { request_ids })
            }
        };
        self.call(place, id, call);
    }

    fn call(&mut self, place: usize, id: u64, call: call::Call) {
        self.set_stage(place, id, Stage::Calling);
        let worker = &mut self.workers[place];
        worker.last_call += 1;
        let message = wire::Call {
            call_id: worker.last_call,
            attempt_id: id,
            call: Some(call),
        };
        worker.calls.insert(worker.last_call, message.clone());
        self.tell(place, Up::Call(message));
    }

    fn answered(&mut self, place: usize, answer: &wire::Answer) {
        let worker = &mut self.workers[place];
        let Some(call) = worker.calls.get(&answer.call_id) else {
            return;
        };
        let id = call.attempt_id;
        let subscription = matches!(call.call, Some(call::Call::SubscribeTasks(_)));
        if subscription && answer.error.is_empty() {
            return;
        }
        worker.calls.remove(&answer.call_id);
        if !answer.error.is_empty() {
            self.check_refused(id, answer);
            return self.fail(place, id, FailureClass::Retryable, "CallRefused");
        }
        let slowness = worker.slowness;
        let Some(attempt) = worker.attempts.get_mut(&id) else {
            return;
        };
        if !matches!(attempt.stage, Stage::Calling) {
            return;
        }
        attempt.marked = true;
        let wait = match attempt.work.kind {
            Kind::Plan => self.models[attempt.assign.job_id.as_str()].execute_milliseconds,
            Kind::Prove | Kind::Join | Kind::Verify | Kind::Setup => 1,
        };
        self.set_stage(place, id, Stage::Running);
        self.later(place, id, (wait * slowness / 100).max(1));
    }

    fn task_result(&mut self, place: usize, result: &wire::TaskResult) {
        let worker = &mut self.workers[place];
        let Some(call) = worker.calls.get_mut(&result.call_id) else {
            return;
        };
        let id = call.attempt_id;
        let Some(call::Call::SubscribeTasks(subscription)) = &mut call.call else {
            return;
        };
        subscription.request_ids.retain(|name| *name != result.request_id);
        if !subscription.request_ids.is_empty() {
            return;
        }
        worker.calls.remove(&result.call_id);
        self.set_stage(place, id, Stage::Running);
        self.later(place, id, 1);
    }

    fn upload(&mut self, place: usize, id: u64) {
        let attempt = &self.workers[place].attempts[&id];
        let (work, assign, inputs) = (attempt.work, attempt.assign.clone(), attempt.inputs.clone());
        if self.store_fails() {
            let wait = self.random.between(200, 2_000);
            return self.later(place, id, wait);
        }
        let Some(model) = self.models.get(assign.job_id.as_str()).cloned() else {
            return;
        };
        let segments = match work.kind {
            Kind::Prove => 1u128 << work.low,
            Kind::Join => inputs.iter().fold(0, |all, input| all | input.segments),
            Kind::Verify | Kind::Plan | Kind::Setup => 0,
        };
        let content = Content {
            program: model.program,
            reduction: work.reduction,
            total: work.total,
            segments,
        };
        let mut outputs = Vec::new();
        for name in &assign.outputs {
            let key = attempt_key(&assign, name);
            self.store.put(&key.as_str().into(), Object::Artifact(content));
            outputs.push(prover_wire::artifact(name, key, content.sha256(), 100));
        }
        // The answer to the last request may be lost: what is stored is stored again.
        let lost = self.faults.store_lost_answer;
        if self.random.chance(lost) {
            let wait = self.random.between(200, 2_000);
            return self.later(place, id, wait);
        }
        let proof = (work.kind == Kind::Verify).then(|| {
            if let Some(proof) = inputs.first() {
                self.check_verified(&assign.job_id, &work, proof);
            }
            ProofReport {
                proof: PROOF.to_owned(),
                public_values: String::new(),
                program_id: "00".to_owned(),
                proof_bytes: 100,
                verifier: "simulated".to_owned(),
            }
        });
        self.report_success(place, id, outputs, proof);
    }

    fn report_success(
        &mut self,
        place: usize,
        id: u64,
        outputs: Vec<wire::Artifact>,
        proof: Option<ProofReport>,
    ) {
        note!(self, place, id, "w{place}: attempt {id} succeeded");
        let report = Up::Succeeded(wire::AttemptSucceeded {
            attempt_id: id,
            outputs,
            result: vec![1],
            execution: Vec::new(),
            proof: proof.map(|proof| proof.encode_to_vec()).unwrap_or_default(),
            usage: Some(wire::Usage::default()),
        });
        self.report(place, id, report);
    }

    fn fail(&mut self, place: usize, id: u64, class: FailureClass, reason: &str) {
        if !self.workers[place].attempts.contains_key(&id) {
            return;
        }
        note!(
            self,
            place,
            id,
            "w{place}: attempt {id} failed: {} {reason}",
            class.as_str_name()
        );
        let report = Up::Failed(wire::AttemptFailed {
            attempt_id: id,
            class: class.into(),
            reason: reason.to_owned(),
            message: format!("{reason} of attempt {id}"),
            execution: Vec::new(),
            usage: Some(wire::Usage::default()),
        });
        self.report(place, id, report);
    }

    fn report(&mut self, place: usize, id: u64, report: Up) {
        self.check_reported(id, matches!(report, Up::Succeeded(_)));
        self.set_stage(place, id, Stage::Reported(Box::new(report.clone())));
        self.workers[place].calls.retain(|_, call| call.attempt_id != id);
        self.tell(place, report);
        self.start_what_can(place);
    }

    fn forget(&mut self, place: usize, id: u64) {
        let worker = &mut self.workers[place];
        worker.attempts.remove(&id);
        worker.calls.retain(|_, call| call.attempt_id != id);
        self.start_what_can(place);
    }

    fn recalled(&mut self, place: usize, id: u64) {
        let waits = self.workers[place]
            .attempts
            .get(&id)
            .is_some_and(|attempt| !attempt.has_started());
        if waits {
            self.give_back(place, id);
        } else {
            self.tell(
                place,
                Up::RecallAnswer(wire::RecallAnswer {
                    attempt_id: id,
                    given_back: false,
                }),
            );
        }
    }

    fn give_back(&mut self, place: usize, id: u64) {
        self.check_ended(id);
        self.tell(
            place,
            Up::RecallAnswer(wire::RecallAnswer {
                attempt_id: id,
                given_back: true,
            }),
        );
        self.forget(place, id);
    }

    fn stop_attempt(&mut self, place: usize, id: u64) {
        let Some(attempt) = self.workers[place].attempts.get(&id) else {
            return self.tell(place, Up::Stopped(wire::AttemptStopped { attempt_id: id }));
        };
        match attempt.stage {
            Stage::Stopping => {}
            Stage::Running | Stage::Calling => {
                note!(self, place, id, "w{place}: attempt {id} is stopping");
                self.set_stage(place, id, Stage::Stopping);
                self.workers[place].calls.retain(|_, call| call.attempt_id != id);
                // Some leave at once; of others the child must be killed.
                let after = if self.random.chance(800) {
                    self.random.between(1, 200)
                } else {
                    STOP_WITHIN
                };
                self.later(place, id, after);
            }
            Stage::Fetching { .. } | Stage::Ready | Stage::Uploading | Stage::Reported(_) => {
                self.stopped(place, id);
            }
        }
    }

    fn stopped(&mut self, place: usize, id: u64) {
        note!(self, place, id, "w{place}: attempt {id} is stopped");
        self.check_ended(id);
        self.tell(place, Up::Stopped(wire::AttemptStopped { attempt_id: id }));
        self.forget(place, id);
    }

    pub(crate) fn start_drain(&mut self, place: usize) {
        if std::mem::replace(&mut self.workers[place].draining, true) {
            return;
        }
        note!(self, place, 0, "w{place}: drains");
        self.tell(place, Up::Draining(wire::Draining::default()));
        let unstarted: Vec<u64> = self.workers[place]
            .attempts
            .iter()
            .filter(|(_, attempt)| !attempt.has_started())
            .map(|(id, _)| *id)
            .collect();
        for id in unstarted {
            self.give_back(place, id);
        }
    }

    pub(crate) fn change_device(&mut self, place: usize, device: usize, usable: bool) {
        let Some(entry) = self.workers[place].devices.get_mut(device) else {
            return;
        };
        entry.usable = usable;
        entry.was_unusable |= !usable;
        let message = device_changed(entry);
        note!(self, place, device, "w{place}: device {device} usable: {usable}");
        self.tell(place, Up::DeviceChanged(message));
    }

    /// Whether a request to the store fails now.
    fn store_fails(&mut self) -> bool {
        let chance = self.faults.store_error;
        self.now < self.store.away_until || self.random.chance(chance)
    }
}

fn device_changed(device: &Device) -> wire::DeviceChanged {
    wire::DeviceChanged {
        device_id: device.id.clone(),
        usable: device.usable,
        reason: "simulated".to_owned(),
    }
}

/// What an attempt shall do.
pub(crate) fn work_of(assign: &wire::Assign) -> Option<Work> {
    if assign.plan.is_empty() {
        return Work::decode(&assign.parameters);
    }
    let plan = prover_backend::protocol::JobPlan::decode(assign.plan.as_slice()).ok()?;
    Some(Work {
        kind: Kind::Plan,
        reduction: plan.segment_po2_reduction,
        low: 0,
        high: 0,
        total: 0,
    })
}

/// Where an attempt puts an output.
fn attempt_key(assign: &wire::Assign, name: &str) -> String {
    format!("{}/attempts/{}/{name}", assign.artifact_prefix, assign.attempt_id)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .map(char::from)
        .collect()
}
