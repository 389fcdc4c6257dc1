//! A small model world around the core: workers that answer, fail, die, reconnect, duplicate and delay reports,
//! and planners that submit random graphs of tasks. Checks from outside what the core promises.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test file uses a part of the world"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prover_core::*;

pub const GIB: u64 = 1 << 30;
/// Tenants of the world's jobs.
pub const TENANTS: [&str; 3] = ["a", "b", "c"];

pub fn backend() -> BackendVersion {
    BackendVersion {
        name: "emulated".into(),
        version: "1".into(),
    }
}

pub fn needs(lane: Lane, device_class: DeviceClass, host_gib: u64, vram_gib: u64) -> Requirements {
    Requirements {
        lane,
        device_class,
        host_memory_bytes: host_gib * GIB,
        vram_bytes: vram_gib * GIB,
        backend: backend(),
    }
}

pub fn mk_task(name: &str, requirements: Requirements) -> TaskSpec {
    TaskSpec {
        request_id: name.into(),
        task_type: name.split('-').next().unwrap_or_default().into(),
        requirements,
        depends_on: Vec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        parameters: Arc::from([]),
        cache_key: None,
        estimated_device_time: Some(Milliseconds(1_000)),
        completes: Vec::new(),
        concludes_job: false,
        marker: false,
    }
}

pub fn mk_policy() -> JobPolicy {
    JobPolicy {
        priority: 0,
        deadline: None,
        active_deadline: None,
        max_workers: None,
        suspended: false,
    }
}

pub fn mk_job(uid: &str, tenant: &str) -> JobSpec {
    let root = mk_task("plan", needs(Lane::Control, DeviceClass::Cpu, 1, 0));
    JobSpec {
        uid: uid.into(),
        tenant: tenant.into(),
        policy: mk_policy(),
        retry_limit: 1_000,
        parent_chain: vec![root.requirements.clone()],
        root,
        root_concludes: false,
        largest_leaf: needs(Lane::Device, DeviceClass::Cpu, 2, 0),
        sources: vec![("program".into(), mk_binding("program"))],
        retained: vec!["proof".into()],
    }
}

pub fn mk_binding(key: &str) -> Binding {
    Binding {
        key: key.into(),
        sha256: [7; 32],
        size_bytes: 100,
    }
}

pub fn mk_worker(host_gib: u64, devices: &[(DeviceClass, u64, u16)]) -> WorkerSpec {
    WorkerSpec {
        name: "w".into(),
        group: "g".into(),
        host_memory_bytes: host_gib * GIB,
        devices: devices
            .iter()
            .map(|(class, vram, slots)| DeviceSpec {
                class: *class,
                vram_bytes: vram * GIB,
                slots: *slots,
            })
            .collect(),
        backend: backend(),
    }
}

/// What a worker has of an attempt.
#[derive(Clone, Debug)]
struct Had {
    job: JobId,
    task: TaskId,
    device: Option<u16>,
    number: u32,
    epoch: u32,
    started: bool,
    /// A planner has submitted its tasks; the group of facts that says so.
    submitted: Option<usize>,
    /// Reports that could not be sent, since the stream was broken.
    completion: Option<Event>,
    stop: bool,
    recall: bool,
}

struct SimWorker {
    spec: WorkerSpec,
    connected: bool,
    has: BTreeMap<AttemptId, Had>,
}

/// A planner's progress and what is still expected of it.
#[derive(Default)]
struct Plan {
    tasks: Vec<TaskSpec>,
}

/// Groups of facts that may be lost with the leader: they were not committed.
const TAIL: usize = 4;

pub struct World {
    pub state: State,
    pub now: u64,
    epoch: u64,
    limits: Limits,
    /// Facts by the event that made them.
    facts: Vec<Vec<Fact>>,
    /// A checkpoint, and how many groups of facts it stands for.
    checkpoint: Option<(usize, Vec<Fact>)>,
    /// What workers keep until the judgement of their report is committed, by the group in which it was judged.
    unacknowledged: Vec<(usize, WorkerId, AttemptId, Had)>,
    /// Store keys that were deleted, by the group that let them go.
    deleted: Vec<(usize, Arc<str>)>,
    specs: BTreeMap<JobId, JobSpec>,
    /// What the state was made from: nothing at first, facts after a crash.
    base: (Vec<Fact>, Timestamp),
    workers: BTreeMap<WorkerId, SimWorker>,
    next_worker: u64,
    next_call: u64,
    next_job: u64,
    plans: BTreeMap<JobId, Plan>,
    phases: BTreeMap<JobId, JobPhase>,
    replans: BTreeMap<JobId, u32>,
    succeeded: BTreeSet<TaskId>,
    roots: BTreeSet<TaskId>,
    bounds: BTreeMap<TenantName, u32>,
    pub log: Vec<(Event, Timestamp)>,
    pub actions: Vec<Action>,
    last_report: Option<Event>,
    pub invariants: bool,
}

impl World {
    pub fn new(limits: Limits) -> World {
        World {
            state: State::new(limits.clone()),
            now: 1_000,
            epoch: 1,
            limits,
            facts: Vec::new(),
            checkpoint: None,
            unacknowledged: Vec::new(),
            deleted: Vec::new(),
            specs: BTreeMap::new(),
            base: (Vec::new(), Timestamp(0)),
            workers: BTreeMap::new(),
            next_worker: 1,
            next_call: 1,
            next_job: 1,
            plans: BTreeMap::new(),
            phases: BTreeMap::new(),
            replans: BTreeMap::new(),
            succeeded: BTreeSet::new(),
            roots: BTreeSet::new(),
            bounds: BTreeMap::new(),
            log: Vec::new(),
            actions: Vec::new(),
            last_report: None,
            invariants: true,
        }
    }

    pub fn apply(&mut self, event: Event) {
        self.log.push((event.clone(), Timestamp(self.now)));
        let mut actions = Vec::new();
        let before: Vec<_> = self.bounds.keys().map(|tenant| self.on_devices(tenant)).collect();
        self.state.apply(event, Timestamp(self.now), &mut actions);
        self.assert_bounds(&before, &actions);
        let facts = actions.iter().filter_map(|action| match action {
            Action::Record(fact) => Some(fact.clone()),
            _ => None,
        });
        self.facts.push(facts.collect());
        let mut nothing_there = Vec::new();
        for action in &actions {
            if let Action::Stop { worker, attempt, .. } = action
                && self.workers.get(worker).is_some_and(|worker| worker.connected)
                && self.reach(*worker, *attempt).is_none()
            {
                nothing_there.push(*attempt);
            }
            self.execute(action);
        }
        let committed = self.facts.len().saturating_sub(TAIL);
        self.unacknowledged.retain(|(group, ..)| *group > committed);
        self.actions.extend(actions);
        if self.invariants {
            self.state.assert_invariants();
        }
        self.assert_physical();
        // Whoever is to stop what it does not have says so.
        for attempt in nothing_there {
            self.apply(Event::AttemptStopped { attempt });
        }
    }

    /// What jobs of a tenant have on devices.
    fn on_devices(&self, tenant: &TenantName) -> Vec<(AttemptId, (WorkerId, DeviceIndex))> {
        let jobs = self.plans.keys().filter_map(|job| self.state.job(*job));
        jobs.filter(|job| job.tenant == tenant)
            .flat_map(|job| self.state.attempts(job.job))
            .filter(|attempt| !matches!(attempt.state, AttemptState::Lost | AttemptState::Ended { .. }))
            .filter_map(|attempt| Some((attempt.attempt, (attempt.worker, attempt.device?))))
            .collect()
    }

    /// A tenant is given no device beyond its bound. What it had when the bound was lowered, and what comes back
    /// after it was lost, may be more.
    fn assert_bounds(&self, before: &[Vec<(AttemptId, (WorkerId, DeviceIndex))>], actions: &[Action]) {
        let assigned: BTreeSet<AttemptId> = actions
            .iter()
            .filter_map(|action| match action {
                Action::Assign(assignment) => Some(assignment.attempt),
                _ => None,
            })
            .collect();
        for ((tenant, bound), before) in self.bounds.iter().zip(before) {
            let now = self.on_devices(tenant);
            let devices: BTreeSet<_> = now.iter().map(|(_, device)| *device).collect();
            if devices.len() <= *bound as usize {
                continue;
            }
            let (given, kept): (Vec<_>, Vec<_>) = now
                .into_iter()
                .partition(|(attempt, _)| assigned.contains(attempt));
            for (_, device) in given {
                assert!(
                    before.iter().chain(&kept).any(|(_, other)| *other == device),
                    "{tenant} is given a device beyond its {bound}"
                );
            }
        }
    }

    pub fn bound_tenant(&mut self, tenant: &str, policy: TenantPolicy) {
        match policy.max_devices {
            Some(bound) => self.bounds.insert(tenant.into(), bound),
            None => self.bounds.remove(tenant),
        };
        let tenant = tenant.into();
        self.apply(Event::TenantPolicyChanged { tenant, policy });
    }

    fn execute(&mut self, action: &Action) {
        match action {
            Action::Assign(assignment) => self.assigned(assignment),
            Action::Stop { worker, attempt, .. } => {
                if let Some(had) = self.reach(*worker, *attempt) {
                    had.stop = true;
                }
            }
            Action::Recall { worker, attempt } => {
                if let Some(had) = self.reach(*worker, *attempt) {
                    had.recall = true;
                }
            }
            Action::CompletionJudged { worker, attempt, .. } => {
                let id = *worker;
                let group = self.facts.len();
                if let Some(worker) = self.workers.get_mut(worker).filter(|worker| worker.connected)
                    && let Some(had) = worker.has.remove(attempt)
                {
                    self.unacknowledged.push((group, id, *attempt, had));
                }
            }
            Action::DeleteArtifact { binding, .. } => {
                assert!(
                    self.deleted.iter().all(|(_, key)| *key != binding.key),
                    "bytes are deleted once"
                );
                self.deleted.push((self.facts.len(), binding.key.clone()));
            }
            Action::JobChanged { job, phase } => {
                let old = self.phases.insert(*job, phase.clone());
                let was_over = old.as_ref().is_some_and(is_over);
                assert!(!was_over, "a job that is over stays as it is: {old:?} {phase:?}");
            }
            Action::TaskChanged { job, task, change } => match change {
                TaskChange::Succeeded { .. } => {
                    assert!(
                        self.succeeded.insert(*task),
                        "the result of a task is accepted once"
                    );
                }
                TaskChange::Retrying { .. } => {
                    let replans = self.state.job(*job).map_or(0, |job| job.replans);
                    if self.replans.insert(*job, replans).unwrap_or(0) != replans {
                        // A new plan: its root may run again.
                        for root in self.roots.clone() {
                            self.succeeded.remove(&root);
                        }
                    }
                }
                _ => {}
            },
            _ => {}
        }
    }

    fn reach(&mut self, worker: WorkerId, attempt: AttemptId) -> Option<&mut Had> {
        self.workers
            .get_mut(&worker)
            .filter(|worker| worker.connected)?
            .has
            .get_mut(&attempt)
    }

    fn assigned(&mut self, assignment: &Assignment) {
        let phase = &self.phases[&assignment.job];
        assert!(
            matches!(phase, JobPhase::Queued(_) | JobPhase::Running),
            "a job that is {phase:?} gets no assignment"
        );
        assert!(
            !self.succeeded.contains(&assignment.task),
            "a finished task is never dispatched again"
        );
        let worker = self
            .workers
            .get_mut(&assignment.worker)
            .expect("work goes to workers that exist");
        assert!(worker.connected, "work goes to connected workers");
        let had = Had {
            job: assignment.job,
            task: assignment.task,
            device: assignment.device.map(|device| device.0),
            number: assignment.number,
            epoch: assignment.epoch,
            started: false,
            submitted: None,
            completion: None,
            stop: false,
            recall: false,
        };
        assert!(
            worker.has.insert(assignment.attempt, had).is_none(),
            "an attempt is assigned once"
        );
    }

    /// What workers really run at once never exceeds what they have.
    fn assert_physical(&self) {
        for (id, worker) in &self.workers {
            let mut host = 0;
            for (index, device) in worker.spec.devices.iter().enumerate() {
                let on_device = || {
                    worker.has.values().filter(|had| {
                        had.started && had.completion.is_none() && had.device == Some(index as u16)
                    })
                };
                assert!(
                    on_device().count() <= usize::from(device.slots),
                    "{id}: slots are overbooked"
                );
                let mut vram = 0;
                for had in on_device() {
                    let Some(task) = self.state.task(had.task) else {
                        continue;
                    };
                    vram += task.spec.requirements.vram_bytes;
                    host += task.spec.requirements.host_memory_bytes;
                }
                assert!(vram <= device.vram_bytes, "{id}: device memory is overbooked");
            }
            for had in worker
                .has
                .values()
                .filter(|had| had.device.is_none() && had.completion.is_none())
            {
                let Some(task) = self.state.task(had.task) else {
                    continue;
                };
                host += task.spec.requirements.host_memory_bytes;
            }
            assert!(
                host <= worker.spec.host_memory_bytes,
                "{id}: host memory is overbooked: {:?} {:?} {:?}",
                worker.has,
                worker
                    .has
                    .keys()
                    .map(|attempt| self.state.attempt(*attempt))
                    .collect::<Vec<_>>(),
                self.log.last(),
            );
        }
    }

    // ---- what can happen ----

    pub fn add_worker(&mut self, mut spec: WorkerSpec) -> WorkerId {
        let id = WorkerId(self.next_worker);
        self.next_worker += 1;
        spec.name = format!("w-{id}").into();
        self.workers.insert(
            id,
            SimWorker {
                spec: spec.clone(),
                connected: true,
                has: BTreeMap::new(),
            },
        );
        self.apply(Event::WorkerConnected {
            worker: id,
            spec: Box::new(spec),
            held: Vec::new(),
        });
        id
    }

    fn nth_worker(&self, number: u16) -> Option<WorkerId> {
        if self.workers.is_empty() {
            return None;
        }
        self.workers
            .keys()
            .nth(usize::from(number) % self.workers.len())
            .copied()
    }

    pub fn disconnect(&mut self, number: u16) {
        let Some(id) = self.nth_worker(number) else { return };
        let worker = self.workers.get_mut(&id).expect("known");
        if std::mem::replace(&mut worker.connected, false) {
            self.apply(Event::WorkerDisconnected { worker: id });
        }
    }

    pub fn reconnect(&mut self, id: WorkerId) {
        if !self.workers[&id].connected {
            self.reconnect_without_reports(id);
            self.report_completions(id);
        }
    }

    fn reconnect_without_reports(&mut self, id: WorkerId) {
        let worker = self.workers.get_mut(&id).expect("known");
        if worker.connected {
            return;
        }
        worker.connected = true;
        let held = worker
            .has
            .iter()
            .map(|(attempt, had)| HeldAttempt {
                attempt: *attempt,
                task: had.task,
                device: had.device.map(DeviceIndex),
                number: had.number,
                epoch: had.epoch,
                started: had.started,
                completed: had.completion.is_some(),
            })
            .collect();
        let spec = Box::new(worker.spec.clone());
        self.apply(Event::WorkerConnected {
            worker: id,
            spec,
            held,
        });
    }

    fn report_completions(&mut self, id: WorkerId) {
        let completions: Vec<Event> = self.workers[&id]
            .has
            .values()
            .filter_map(|had| had.completion.clone())
            .collect();
        for completion in completions {
            if let Event::AttemptFailed { attempt, .. } = &completion {
                let group = self.facts.len() + 1;
                let worker = self.workers.get_mut(&id).expect("known");
                if let Some(had) = worker.has.remove(attempt) {
                    self.unacknowledged.push((group, id, *attempt, had));
                }
            }
            self.apply(completion);
        }
    }

    pub fn kill(&mut self, number: u16) {
        let Some(id) = self.nth_worker(number) else { return };
        self.workers.remove(&id);
        self.apply(Event::WorkerGone { worker: id });
    }

    pub fn heartbeat(&mut self, id: WorkerId) {
        if self.workers[&id].connected {
            let attempts = self.workers[&id].has.keys().copied().collect();
            self.apply(Event::WorkerHeartbeat { worker: id, attempts });
        }
    }

    pub fn submit_job(&mut self, shape: u16) -> JobId {
        let uid = format!("job-{}", self.next_job);
        self.next_job += 1;
        let mut spec = mk_job(&uid, TENANTS[usize::from(shape) % TENANTS.len()]);
        spec.policy.priority = i32::from(shape % 2);
        spec.policy.max_workers = (shape.is_multiple_of(5)).then_some(1 + u32::from(shape % 3));
        let leaf = needs(Lane::Device, DeviceClass::Cpu, 1 + u64::from(shape % 2), 0);
        let mut tasks = Vec::new();
        let segments = 1 + usize::from(shape % 7);
        for segment in 0..segments {
            let mut task = mk_task(&format!("prove-{segment}"), leaf.clone());
            task.inputs = vec!["program".into()];
            task.outputs = vec![format!("receipt-{segment}").into()];
            if shape.is_multiple_of(4) {
                task.cache_key = Some(format!("key-{}-{segment}", shape % 8).into());
            }
            if segment > 0 && shape % 3 == 1 {
                task.depends_on = vec![format!("prove-{}", segment - 1).into()];
            }
            tasks.push(task);
        }
        let mut join = mk_task("join-0", needs(Lane::Device, DeviceClass::Cpu, 1, 0));
        join.inputs = (0..segments)
            .map(|segment| format!("receipt-{segment}").into())
            .collect();
        join.outputs = vec!["proof".into()];
        tasks.push(join);
        let mut verify = mk_task("verify-0", needs(Lane::Device, DeviceClass::Cpu, 1, 0));
        verify.depends_on = vec!["join-0".into()];
        verify.inputs = vec!["proof".into()];
        verify.concludes_job = true;
        tasks.push(verify);
        self.apply(Event::JobSubmitted(Box::new(spec.clone())));
        let job = self.state.job_by_uid(&uid).expect("the job was taken");
        self.specs.insert(job, spec);
        self.roots.insert(self.state.job(job).expect("known").root);
        self.plans.insert(job, Plan { tasks });
        job
    }

    pub fn nth_job(&self, number: u16) -> Option<JobId> {
        if self.plans.is_empty() {
            return None;
        }
        self.plans
            .keys()
            .nth(usize::from(number) % self.plans.len())
            .copied()
    }

    pub fn call(&mut self) -> CallId {
        self.next_call += 1;
        CallId(self.next_call)
    }

    /// Lets one attempt go on by one step. `fate` decides how it ends; below 200 it goes well.
    pub fn step(&mut self, id: WorkerId, nth: u16, fate: u8) {
        let worker = &self.workers[&id];
        if worker.has.is_empty() {
            return;
        }
        let (attempt, had) = worker
            .has
            .iter()
            .nth(usize::from(nth) % worker.has.len())
            .map(|(id, had)| (*id, had.clone()))
            .expect("one");
        if had.completion.is_some() {
            return;
        }
        if had.stop || (had.recall && !had.started) {
            if worker.connected {
                self.workers.get_mut(&id).expect("known").has.remove(&attempt);
                self.report(
                    id,
                    attempt,
                    if had.stop && !had.recall {
                        Event::AttemptStopped { attempt }
                    } else {
                        Event::RecallAnswered {
                            attempt,
                            given_back: true,
                        }
                    },
                );
            }
            return;
        }
        if had.recall {
            self.workers
                .get_mut(&id)
                .expect("known")
                .has
                .get_mut(&attempt)
                .expect("one")
                .recall = false;
            if worker_connected(&self.workers, id) {
                self.apply(Event::RecallAnswered {
                    attempt,
                    given_back: false,
                });
            }
            return;
        }
        if !had.started {
            if self.may_start(id, attempt, &had) {
                self.workers
                    .get_mut(&id)
                    .expect("known")
                    .has
                    .get_mut(&attempt)
                    .expect("one")
                    .started = true;
                if worker_connected(&self.workers, id) {
                    self.apply(Event::AttemptStarted { attempt });
                }
            }
            return;
        }
        self.end(id, attempt, &had, fate);
    }

    /// A device starts what it was given in the order in which it was given, whenever it has a slot.
    fn may_start(&self, id: WorkerId, attempt: AttemptId, had: &Had) -> bool {
        let worker = &self.workers[&id];
        let Some(device) = had.device else { return true };
        let slots = usize::from(worker.spec.devices[usize::from(device)].slots);
        let busy = worker
            .has
            .values()
            .filter(|other| other.started && other.completion.is_none() && other.device == Some(device));
        let first = worker
            .has
            .iter()
            .find(|(_, other)| !other.started && other.device == Some(device));
        busy.count() < slots && first.is_some_and(|(first, _)| *first == attempt)
    }

    fn end(&mut self, id: WorkerId, attempt: AttemptId, had: &Had, fate: u8) {
        let is_root = self.roots.contains(&had.task);
        if let Some(group) = had.submitted.filter(|_| fate < 200) {
            // It ends when it was told that its tasks are taken, which waits for the commit.
            if self.facts.len() < group + TAIL {
                return;
            }
        } else if is_root && fate < 200 && worker_connected(&self.workers, id) {
            // A planner submits what it has planned; again does no harm.
            let Some(plan) = self.plans.get(&had.job) else {
                // Its job is forgotten, or was never committed.
                return;
            };
            let tasks = plan.tasks.clone();
            let call = self.call();
            let half = tasks.len() / 2;
            self.apply(Event::TasksSubmitted {
                call,
                attempt,
                tasks: tasks[..half].to_vec(),
            });
            let call = self.call();
            self.apply(Event::TasksSubmitted { call, attempt, tasks });
            if self.limits.record_facts {
                let group = self.facts.len();
                let worker = self.workers.get_mut(&id).expect("known");
                if let Some(had) = worker.has.get_mut(&attempt) {
                    had.submitted = Some(group);
                }
                return;
            }
        } else if is_root && fate < 200 {
            return;
        }
        let usage = Usage {
            device_time: Milliseconds(0),
            energy_millijoules: 5,
        };
        let class = match fate {
            0..200 => None,
            200..210 => Some(FailureClass::Retryable),
            210..220 => Some(FailureClass::ChildCrashed),
            220..228 => Some(FailureClass::OutOfMemory),
            228..236 => Some(FailureClass::ChildOutOfMemory),
            236..246 => Some(FailureClass::WorkerLost),
            246..250 => Some(FailureClass::Artifact),
            250..252 => Some(FailureClass::Fatal),
            _ => Some(FailureClass::ChildHung),
        };
        let event = match class {
            Some(class) => Event::AttemptFailed {
                attempt,
                class,
                reason: "Broken".into(),
                message: "it broke".into(),
                usage,
            },
            None => {
                let outputs = self
                    .state
                    .task(had.task)
                    .map(|task| task.spec.outputs.clone())
                    .unwrap_or_default();
                Event::AttemptSucceeded {
                    attempt,
                    outputs: outputs
                        .into_iter()
                        .map(|name| {
                            let binding = mk_binding(&format!("{attempt}/{name}"));
                            (name, binding)
                        })
                        .collect(),
                    result: Arc::from([1u8]),
                    usage,
                }
            }
        };
        let worker = self.workers.get_mut(&id).expect("known");
        if worker.connected {
            if class.is_some() {
                if let Some(mut had) = worker.has.remove(&attempt) {
                    had.completion = Some(event.clone());
                    let group = self.facts.len() + 1;
                    self.unacknowledged.push((group, id, attempt, had));
                }
            } else if let Some(had) = worker.has.get_mut(&attempt) {
                had.completion = Some(event.clone());
            }
            self.report(id, attempt, event);
        } else if let Some(had) = worker.has.get_mut(&attempt) {
            had.completion = Some(event);
        }
    }

    fn report(&mut self, _worker: WorkerId, _attempt: AttemptId, event: Event) {
        self.last_report = Some(event.clone());
        self.apply(event);
    }

    pub fn repeat_last_report(&mut self) {
        if let Some(event) = self.last_report.clone() {
            self.apply(event);
        }
    }

    /// One random thing.
    pub fn random(&mut self, operation: u8, number: u16, fate: u8) {
        if operation >= 250 {
            let policy = TenantPolicy {
                weight: 1 + u32::from(fate % 3),
                max_devices: (fate < 160).then_some(u32::from(number % 4)),
            };
            return self.bound_tenant(TENANTS[usize::from(number / 4) % TENANTS.len()], policy);
        }
        match operation % 20 {
            0 => {
                self.now += u64::from(number % 4_000);
                self.apply(Event::Tick);
            }
            1 | 2 => {
                if self.plans.len() < 12 {
                    self.submit_job(number);
                }
            }
            3 => {
                if self.workers.len() < 6 {
                    let slots = 1 + number % 3;
                    let devices: Vec<_> = (0..1 + number % 2)
                        .map(|_| (DeviceClass::Cpu, 0, slots))
                        .collect();
                    let mut spec = mk_worker(3 + u64::from(number % 6), &devices);
                    spec.group = ["g", "h"][usize::from(fate % 2)].into();
                    self.add_worker(spec);
                }
            }
            4 => self.disconnect(number),
            5 => {
                if let Some(id) = self.nth_worker(number) {
                    self.reconnect(id);
                }
            }
            6 => {
                if fate < 60 {
                    self.kill(number);
                }
            }
            7 => {
                if let Some(id) = self.nth_worker(number) {
                    self.heartbeat(id);
                }
            }
            8 => self.repeat_last_report(),
            9 => self.change_job(number, fate),
            10 => {
                let found = self.nth_worker(number).filter(|_| fate < 40);
                if let Some(worker) = found.filter(|id| worker_connected(&self.workers, *id)) {
                    self.apply(Event::WorkerDraining { worker });
                }
            }
            11 => {
                if let Some(worker) = self
                    .nth_worker(number)
                    .filter(|id| worker_connected(&self.workers, *id))
                {
                    self.apply(Event::DeviceChanged {
                        worker,
                        device: DeviceIndex(0),
                        usable: fate > 60,
                    });
                }
            }
            _ => {
                if let Some(id) = self.nth_worker(number) {
                    self.step(id, number / 7, fate);
                }
            }
        }
    }

    // ---- the leader dies ----

    pub fn take_checkpoint(&mut self) {
        self.checkpoint = Some((self.facts.len(), self.state.checkpoint()));
    }

    /// Facts as a new leader reads them: from the newest checkpoint on, if that is older than what is kept.
    fn facts_from_checkpoint(&self, kept: usize) -> Vec<Fact> {
        let Some((groups, checkpoint)) = self.checkpoint.as_ref().filter(|(groups, _)| *groups <= kept)
        else {
            return self.facts[..kept].concat();
        };
        let mut facts = checkpoint.clone();
        facts.extend(self.facts[*groups..kept].concat());
        facts
    }

    /// The leader dies with up to `TAIL` groups of facts that were not committed; `lost` says which workers go with
    /// it. Another one recovers.
    pub fn crash(&mut self, lost_groups: usize, lost: u16) {
        let kept = self.facts.len().saturating_sub(lost_groups.min(TAIL));
        let whole = kept == self.facts.len();
        let before = whole.then(|| (durable(&self.state), sorted(&self.state.checkpoint())));
        self.epoch += 1;
        let at = Timestamp(self.now);
        let all = self.facts[..kept].concat();
        let facts = self.facts_from_checkpoint(kept);
        let from_all =
            State::recover(self.limits.clone(), self.epoch, all, at).expect("all facts make a state");
        self.state = State::recover(self.limits.clone(), self.epoch, facts.clone(), at)
            .expect("the facts make a state");
        self.state.assert_invariants();
        from_all.assert_invariants();
        same(&sorted(&from_all.checkpoint()), &sorted(&self.state.checkpoint()));
        assert_eq!(durable(&from_all), durable(&self.state));
        if let Some((before, checkpoint)) = before {
            assert_eq!(before, durable(&self.state), "the durable state is the same");
            same(&checkpoint, &sorted(&self.state.checkpoint()));
        }
        self.facts.truncate(kept);
        self.deleted.retain(|(group, _)| *group <= kept);
        self.checkpoint = self.checkpoint.take().filter(|(groups, _)| *groups <= kept);
        self.base = (facts, at);
        self.log.clear();
        self.actions.clear();
        for had in self
            .workers
            .values_mut()
            .flat_map(|worker| worker.has.values_mut())
        {
            // Nobody told the planner that its tasks were taken: it submits them again before it ends.
            had.submitted = had.submitted.filter(|group| *group <= kept);
        }
        for (group, worker, attempt, had) in std::mem::take(&mut self.unacknowledged) {
            if group > kept
                && let Some(worker) = self.workers.get_mut(&worker)
            {
                worker.has.insert(attempt, had);
            }
        }
        self.know_again();
        self.workers_after_crash(lost);
    }

    /// What is expected after a crash is what the recovered state says.
    fn know_again(&mut self) {
        self.phases = self
            .state
            .jobs()
            .map(|job| (job.job, job.phase.clone()))
            .collect();
        self.replans = self.state.jobs().map(|job| (job.job, job.replans)).collect();
        self.roots = self.state.jobs().map(|job| job.root).collect();
        let jobs: Vec<JobId> = self.phases.keys().copied().collect();
        self.succeeded = jobs
            .iter()
            .flat_map(|job| self.state.tasks(*job))
            .filter(|task| task.state == TaskState::Succeeded)
            .map(|task| task.task)
            .collect();
        for tenant in ["a", "b", "c"] {
            let policy = TenantPolicy {
                weight: 1,
                max_devices: self.bounds.get(tenant).copied(),
            };
            self.bound_tenant(tenant, policy);
        }
        // A job whose admission was lost is submitted again, one whose end was forgotten is forgotten again.
        let known = std::mem::take(&mut self.plans);
        for (job, plan) in known {
            let spec = self.specs[&job].clone();
            let uid = spec.uid.clone();
            self.apply(Event::JobSubmitted(Box::new(spec.clone())));
            let again = self.state.job_by_uid(&uid).expect("the job was taken");
            self.roots.insert(self.state.job(again).expect("known").root);
            self.specs.insert(again, spec);
            self.plans.insert(again, plan);
        }
        for job in jobs {
            if !self.plans.contains_key(&job) {
                self.apply(Event::JobForgotten { job });
            }
        }
    }

    /// Some workers are gone, which is told or found out; the others connect as new sessions when they are asked to.
    fn workers_after_crash(&mut self, lost: u16) {
        let workers = std::mem::take(&mut self.workers);
        for (at, (_, mut worker)) in workers.into_iter().enumerate() {
            if lost & (1 << at) != 0 {
                if lost & (1 << (at + 8)) != 0 {
                    let name = worker.spec.name.clone();
                    self.apply(Event::AwaitedWorkerGone { name });
                }
                continue;
            }
            worker.connected = false;
            self.workers.insert(WorkerId(self.next_worker), worker);
            self.next_worker += 1;
        }
    }

    /// Attempts that run and hold the lease, as the state and their worker know them. One that was only fetched ahead
    /// may lose its place to something that was stopped and has not left yet.
    fn leased(&self) -> BTreeSet<(AttemptId, TaskId)> {
        let all = self.workers.values().flat_map(|worker| &worker.has);
        all.filter(|(attempt, had)| {
            (had.started || had.device.is_none())
                && self
                    .state
                    .task(had.task)
                    .is_some_and(|task| task.current.is_some_and(|(current, _)| current == **attempt))
        })
        .map(|(attempt, had)| (*attempt, had.task))
        .collect()
    }

    /// A leader dies, and nothing else: all workers connect before any of them reports.
    pub fn crash_alone(&mut self) {
        let leased = self.leased();
        let quiet = self
            .workers
            .values()
            .all(|worker| worker.connected && worker.has.values().all(|had| !had.stop))
            && self
                .state
                .workers()
                .all(|worker| !worker.draining && worker.failed_devices == 0);
        self.crash(0, 0);
        let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
        for id in &ids {
            self.reconnect_without_reports(*id);
        }
        for (attempt, task) in leased {
            let preempted = |action: &Action| {
                matches!(action, Action::Stop { attempt: stopped, reason: StopReason::Preempted, .. }
                    if *stopped == attempt)
            };
            // Which planners are in the way of leaves is decided anew where a worker or a device is there again that was
            // not before, or where some were being stopped for that.
            if !quiet && self.actions.iter().any(preempted) {
                continue;
            }
            let view = self.state.task(task).expect("the task is known");
            // Of several that had been lost and are all there now the latest goes on.
            assert!(
                view.current.is_some_and(|(current, _)| current >= attempt),
                "a running attempt keeps its lease: {attempt} {view:?} {:?}",
                self.state.attempt(attempt)
            );
        }
        for id in ids {
            self.report_completions(id);
        }
    }

    fn change_job(&mut self, number: u16, fate: u8) {
        let Some(job) = self.nth_job(number) else { return };
        let Some(view) = self.state.job(job) else { return };
        let mut policy = view.policy;
        match fate % 4 {
            0 if fate < 40 => self.apply(Event::JobCancelled { job }),
            1 => {
                policy.suspended = !policy.suspended;
                self.apply(Event::JobPolicyChanged { job, policy });
            }
            2 => {
                policy.max_workers = if fate < 128 { Some(1) } else { None };
                policy.priority = i32::from(fate % 3);
                self.apply(Event::JobPolicyChanged { job, policy });
            }
            3 if is_over(view.phase) && fate < 40 => {
                self.apply(Event::JobForgotten { job });
                self.plans.remove(&job);
            }
            _ => {}
        }
    }

    /// Everything works again: all jobs must end within a bounded number of rounds.
    pub fn heal_and_finish(&mut self) {
        self.add_worker(mk_worker(16, &[(DeviceClass::Cpu, 0, 2)]));
        self.add_worker(mk_worker(16, &[(DeviceClass::Cpu, 0, 1)]));
        let bounded: Vec<TenantName> = self.bounds.keys().cloned().collect();
        for (nth, tenant) in bounded.iter().enumerate() {
            // A tenant that may have nothing would never end; the smallest bound must do.
            let max_devices = Some(1 + nth as u32 % 2);
            self.bound_tenant(
                tenant,
                TenantPolicy {
                    weight: 1,
                    max_devices,
                },
            );
        }
        let jobs: Vec<JobId> = self.plans.keys().copied().collect();
        for job in &jobs {
            if let Some(view) = self.state.job(*job)
                && view.policy.suspended
            {
                let mut policy = view.policy;
                policy.suspended = false;
                self.apply(Event::JobPolicyChanged { job: *job, policy });
            }
        }
        for _ in 0..3_000 {
            let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
            for id in ids {
                self.reconnect(id);
                self.heartbeat(id);
                for nth in 0..self.workers[&id].has.len() as u16 {
                    self.step(id, nth, 0);
                }
            }
            self.now += 700;
            self.apply(Event::Tick);
            if jobs
                .iter()
                .all(|job| self.state.job(*job).is_none_or(|job| is_over(job.phase)))
            {
                return;
            }
        }
        let left: Vec<_> = jobs
            .iter()
            .filter_map(|job| self.state.job(*job))
            .filter(|job| !is_over(job.phase))
            .map(|job| {
                let tasks: Vec<_> = self
                    .state
                    .tasks(job.job)
                    .map(|t| (t.spec.request_id.clone(), t.state))
                    .collect();
                (job.job, job.phase.clone(), tasks)
            })
            .collect();
        let workers: Vec<_> = self.state.workers().collect();
        panic!("jobs did not end: {left:#?} {workers:#?}");
    }

    /// Forgets all jobs and checks that nothing of them is left.
    pub fn forget_all(&mut self) {
        let jobs: Vec<JobId> = self.plans.keys().copied().collect();
        for job in jobs {
            self.apply(Event::JobForgotten { job });
        }
        for _ in 0..50 {
            let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
            for id in ids {
                for nth in 0..self.workers[&id].has.len() as u16 {
                    self.step(id, nth, 0);
                }
            }
        }
        assert_eq!(self.state.jobs().count(), 0, "a forgotten job is gone");
    }

    /// The same events make the same actions.
    pub fn assert_deterministic(&self, limits: Limits) {
        let (facts, at) = self.base.clone();
        let mut again = State::recover(limits, self.epoch, facts, at).expect("the facts make a state");
        let mut actions = Vec::new();
        for (event, at) in &self.log {
            again.apply(event.clone(), *at, &mut actions);
        }
        assert!(actions == self.actions, "the same events make the same actions");
    }

    /// What was deleted was bound, was no source and was not retained, and each binding went once.
    pub fn assert_deletions(&self) {
        for action in &self.actions {
            if let Action::DeleteArtifact { name, .. } = action {
                assert!(
                    &**name != "program" && &**name != "proof",
                    "sources and retained artifacts stay"
                );
            }
        }
    }
}

fn worker_connected(workers: &BTreeMap<WorkerId, SimWorker>, id: WorkerId) -> bool {
    workers.get(&id).is_some_and(|worker| worker.connected)
}

pub fn is_over(phase: &JobPhase) -> bool {
    matches!(
        phase,
        JobPhase::Succeeded | JobPhase::Failed { .. } | JobPhase::Cancelled
    )
}

/// What must outlive a leader, as the views tell it.
fn durable(state: &State) -> Vec<String> {
    let mut lines = Vec::new();
    for job in state.jobs() {
        let over = is_over(job.phase).then_some(job.phase);
        lines.push(format!(
            "{} {} {:?} {:?} {:?}",
            job.job, job.uid, job.policy, over, job.tenant
        ));
        lines.push(format!(
            "{:?} {:?} {:?} {} {} {} {} {} {:?} {}",
            job.submitted_at,
            job.started_at,
            job.finished_at,
            job.replans,
            job.epoch,
            job.failures,
            job.infrastructure_failures,
            job.tasks,
            job.device_time,
            job.energy_millijoules,
        ));
        for task in state.tasks(job.job) {
            let ended = match task.state {
                TaskState::Succeeded | TaskState::Failed | TaskState::Dropped => Some(task.state),
                _ => None,
            };
            let named = state.task_by_request(job.job, &task.spec.request_id) == Some(task.task);
            lines.push(format!(
                "{} {:?} {named} {} {:?} {:?} {:?} {} {:?} {:?} {:?}",
                task.task,
                ended,
                task.epoch,
                task.submitted_at,
                task.finished_at,
                task.device_time,
                task.energy_millijoules,
                task.result,
                task.from_cache,
                task.last_failure,
            ));
            for name in task.spec.inputs.iter().chain(&task.spec.outputs) {
                lines.push(format!("{name} {:?}", state.artifact(job.job, name)));
            }
        }
    }
    lines
}

fn sorted(facts: &[Fact]) -> Vec<String> {
    let mut lines: Vec<String> = facts.iter().map(|fact| format!("{fact:?}")).collect();
    lines.sort();
    lines
}

/// Compares line by line, so that a difference can be read.
fn same(left: &[String], right: &[String]) {
    let only_left: Vec<_> = left.iter().filter(|line| !right.contains(line)).collect();
    let only_right: Vec<_> = right.iter().filter(|line| !left.contains(line)).collect();
    assert!(
        only_left.is_empty() && only_right.is_empty() && left.len() == right.len(),
        "checkpoints differ: {only_left:#?} {only_right:#?}"
    );
}
