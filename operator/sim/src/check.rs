//! The promises, checked from outside: against what workers, store and API server saw, never against what the
//! coordinator believes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prover_coordinator::JobPolicy;
use prover_wire::protocol as wire;
use prover_wire::protocol::coordinator_message::Message as Down;

use crate::api::ApiPhase;
use crate::model::{Content, Kind, PROOF, Work};
use crate::store::Object;
use crate::trace::note;
use crate::world::{Happening, Wish, World};

/// How soon a cancelled job's attempts must have been told to stop.
const WITHIN: u64 = 1_000;

/// A promise that is looked at when its time has come.
#[derive(Debug)]
pub(crate) enum Judgement {
    /// All jobs must have ended.
    AllEnded,
    /// Nothing of the jobs may be left.
    Clean,
    /// The attempts of a cancelled job must have been told to stop.
    Stopped {
        uid: Arc<str>,
        replica: usize,
        incarnation: u64,
        since: u64,
    },
    /// The deadline of a job is over, and the time to obey it.
    DeadlineOver {
        uid: Arc<str>,
        replica: usize,
        incarnation: u64,
        deadline: u64,
    },
}

/// A task, as its parameters name it.
type TaskKey = (Arc<str>, Work);

/// What is known of an attempt.
#[derive(Debug)]
struct AttemptRecord {
    task: TaskKey,
    place: usize,
    process: u64,
    sent_at: u64,
    /// Whoever gave it away led, as far as the log knows.
    by_leader: bool,
    stop_sent: bool,
    /// Its worker has reported its end, or died with it.
    ended: bool,
    succeeded: bool,
    /// When its success reached a coordinator first.
    delivered_at: Option<u64>,
}

/// What is known of a task.
#[derive(Debug, Default)]
struct TaskRecord {
    attempts: Vec<u64>,
    /// The attempt whose success was acknowledged as its task's.
    accepted: Option<u64>,
}

/// What is known of a job.
#[derive(Debug, Default)]
struct JobRecord {
    /// The user has cancelled it or deleted it.
    cancelled: bool,
    deadline: bool,
    /// Which coordinator process was told last to cancel it, and when.
    cancel_told: Option<((usize, u64), u64)>,
    ended: Option<ApiPhase>,
    proof: Option<Arc<str>>,
}

/// A stream as the coordinator's side has it.
#[derive(Debug)]
struct Heard {
    replica: usize,
    at: u64,
    attempts: BTreeSet<u64>,
}

/// Everything that was seen.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    attempts: BTreeMap<u64, AttemptRecord>,
    tasks: BTreeMap<TaskKey, TaskRecord>,
    jobs: BTreeMap<Arc<str>, JobRecord>,
    /// The last heartbeat of each agent process whose stream is open, as it was heard.
    heard: BTreeMap<(usize, u64), Heard>,
    deleted: BTreeSet<Arc<str>>,
    /// The process that began the last epoch.
    leader: Option<(usize, u64)>,
    /// The last object of the log.
    last_sequence: Option<u64>,
    /// Processes that ended while they led. Deletes that they had not carried out are left to the sweep of the
    /// job's prefix, which is not simulated.
    lost_leaders: u64,
    /// The last stage is over and nothing was left.
    pub(crate) clean: bool,
}

impl Ledger {
    pub(crate) fn heartbeat(
        &mut self,
        place: usize,
        process: u64,
        replica: usize,
        at: u64,
        attempts: Vec<u64>,
    ) {
        let attempts = attempts.into_iter().collect();
        self.heard.insert(
            (place, process),
            Heard {
                replica,
                at,
                attempts,
            },
        );
    }

    pub(crate) fn stream_ended(&mut self, place: usize, process: u64, replica: usize) {
        if self
            .heard
            .get(&(place, process))
            .is_some_and(|heard| heard.replica == replica)
        {
            self.heard.remove(&(place, process));
        }
    }

    pub(crate) fn replica_ended(&mut self, replica: usize, led: bool) {
        self.lost_leaders += u64::from(led);
        self.heard.retain(|_, heard| heard.replica != replica);
    }

    pub(crate) fn wished(&mut self, uid: &Arc<str>, what: Wish, _now: u64) {
        let job = self.jobs.entry(uid.clone()).or_default();
        match what {
            Wish::Cancel | Wish::Delete => job.cancelled = true,
            Wish::Deadline(_) | Wish::ActiveDeadline(_) => job.deadline = true,
            Wish::Create | Wish::Suspend(_) | Wish::Priority(_) | Wish::MaxWorkers(_) => {}
        }
    }
}

impl World {
    // ---- what coordinators send ----

    pub(crate) fn check_sent(
        &mut self,
        replica: usize,
        epoch: u64,
        place: usize,
        process: u64,
        message: &Down,
    ) {
        match message {
            Down::Assign(assign) => self.check_assigned(replica, epoch, place, process, assign),
            Down::Stop(stop) => self.check_stop_sent(stop.attempt_id),
            Down::Welcome(welcome) => {
                for attempt in &welcome.stop {
                    self.check_stop_sent(*attempt);
                }
            }
            Down::Acknowledged(told) if told.accepted => self.check_accepted(replica, told.attempt_id),
            _ => {}
        }
    }

    /// What is told to stop in a turn is known before what is given away in it: the order between workers means nothing.
    pub(crate) fn check_stops_sent(&mut self, messages: &[(u64, usize, u64, Option<Down>)]) {
        for (_, _, _, message) in messages {
            match message {
                Some(Down::Stop(stop)) => self.check_stop_sent(stop.attempt_id),
                Some(Down::Welcome(welcome)) => {
                    for attempt in &welcome.stop {
                        self.check_stop_sent(*attempt);
                    }
                }
                _ => {}
            }
        }
    }

    fn check_stop_sent(&mut self, attempt: u64) {
        if let Some(record) = self.ledger.attempts.get_mut(&attempt) {
            record.stop_sent = true;
        }
    }

    fn check_assigned(
        &mut self,
        replica: usize,
        epoch: u64,
        place: usize,
        process: u64,
        assign: &wire::Assign,
    ) {
        let id = assign.attempt_id;
        let Some(work) = crate::worker::work_of(assign) else {
            return self.violated("messages", format!("attempt {id} has no work that can be read"));
        };
        let uid: Arc<str> = assign.job_id.as_str().into();
        let key = (uid.clone(), work);
        note!(
            self,
            id,
            epoch,
            "r{replica}: gives attempt {id} to w{place}: {} of {uid}",
            work.name()
        );
        if assign.epoch != epoch {
            self.violated(
                "epochs",
                format!("epoch {epoch} assigns attempt {id} as epoch {}", assign.epoch),
            );
        }
        if self.ledger.attempts.contains_key(&id) {
            return self.violated("attempt-ids", format!("attempt {id} is assigned a second time"));
        }
        let teller = (replica, self.replicas[replica].incarnation);
        let leads = self.leads(replica);
        let job = self.ledger.jobs.entry(uid.clone()).or_default();
        if !leads {
            // Recorded below, judged by nobody.
        } else if job.cancel_told.is_some_and(|(told, _)| told == teller) || job.ended.is_some() {
            let words = format!("{} of {uid} is assigned after its job was over", work.name());
            return self.violated("cancel", words);
        }
        let task = self.ledger.tasks.entry(key.clone()).or_default();
        let (accepted, others) = (task.accepted, task.attempts.clone());
        task.attempts.push(id);
        if let Some(accepted) = accepted.filter(|_| leads) {
            let words = format!(
                "{} of {uid} is assigned again as attempt {id}, though attempt {accepted} was acknowledged",
                work.name()
            );
            self.violated("proved-once", words);
        }
        let live: Vec<u64> = others
            .into_iter()
            .filter(|other| leads && self.is_surely_live(replica, *other))
            .collect();
        let allowed = usize::from(self.limits.speculate_after_percent > 0);
        if let Some(other) = live.first().filter(|_| live.len() > allowed) {
            let words = format!(
                "attempt {id} of {} of {uid} is assigned while attempt {other} runs on w{} and was not stopped",
                work.name(),
                self.ledger.attempts[other].place
            );
            self.violated("one-lease", words);
        }
        self.ledger.attempts.insert(
            id,
            AttemptRecord {
                task: key,
                place,
                process,
                sent_at: self.now,
                by_leader: leads,
                stop_sent: false,
                ended: false,
                succeeded: false,
                delivered_at: None,
            },
        );
    }

    /// Whether a coordinator can't but know that an attempt runs: its worker is connected and has just said so.
    fn is_surely_live(&self, replica: usize, attempt: u64) -> bool {
        let record = &self.ledger.attempts[&attempt];
        if record.ended || record.stop_sent {
            return false;
        }
        let worker = &self.workers[record.place];
        if !worker.up || worker.process != record.process || !worker.attempts.contains_key(&attempt) {
            return false;
        }
        let heard = self.ledger.heard.get(&(record.place, record.process));
        heard.is_some_and(|heard| {
            heard.replica == replica
                && heard.attempts.contains(&attempt)
                && self.now - heard.at < self.limits.lease.0 / 2
        })
    }

    fn check_accepted(&mut self, replica: usize, attempt: u64) {
        let teller = (replica, self.replicas[replica].incarnation);
        let Some(record) = self.ledger.attempts.get(&attempt) else {
            return self.violated(
                "acknowledged",
                format!("attempt {attempt} is acknowledged but was never assigned"),
            );
        };
        // The reports of failures are acknowledged too.
        if !record.succeeded {
            return;
        }
        let (key, delivered) = (record.task.clone(), record.delivered_at);
        let (uid, work) = (key.0.clone(), key.1);
        let job = self.ledger.jobs.entry(uid.clone()).or_default();
        if let (Some((told, since)), Some(delivered)) = (job.cancel_told, delivered)
            && told == teller
            && since < delivered
        {
            let words = format!(
                "a result of {} of {uid} counts, though its job was cancelled before",
                work.name()
            );
            return self.violated("cancel", words);
        }
        let task = self.ledger.tasks.entry(key).or_default();
        match task.accepted {
            Some(other) if other != attempt => {
                let words = format!(
                    "attempts {other} and {attempt} of {} of {uid} are both acknowledged as its result",
                    work.name()
                );
                self.violated("counted-once", words);
            }
            _ => task.accepted = Some(attempt),
        }
    }

    // ---- what workers do ----

    /// What runs on a worker must fit: nobody booked more than it has.
    pub(crate) fn check_started(&mut self, place: usize, id: u64) {
        let worker = &self.workers[place];
        let mut host = 0;
        let mut words = None;
        for (index, device) in worker.devices.iter().enumerate() {
            let running: Vec<&crate::worker::Attempt> = worker
                .attempts
                .values()
                .filter(|attempt| attempt.device == Some(index) && attempt.is_in_child())
                .collect();
            let vram: u64 = running.iter().map(|attempt| attempt.assign.vram_bytes).sum();
            if vram > device.vram_bytes {
                words = Some(format!("device {index} of w{place} runs tasks of {vram} bytes"));
            }
            if running.len() > device.slots {
                words = Some(format!(
                    "device {index} of w{place} runs {} attempts",
                    running.len()
                ));
            }
            let alone = running.iter().any(|attempt| attempt.assign.alone);
            let others = running.iter().filter(|attempt| !attempt.is_stopping()).count();
            if alone && others > 1 {
                words = Some(format!("a suspect is not alone on device {index} of w{place}"));
            }
        }
        for attempt in worker.attempts.values().filter(|attempt| attempt.is_in_child()) {
            host += attempt.assign.host_memory_bytes;
        }
        if host > worker.host_memory_bytes {
            words = Some(format!("w{place} runs tasks of {host} bytes"));
        }
        if let Some(words) = words {
            self.violated("overbooked", format!("{words} since attempt {id} started"));
        }
    }

    pub(crate) fn check_reported(&mut self, attempt: u64, succeeded: bool) {
        if let Some(record) = self.ledger.attempts.get_mut(&attempt) {
            record.ended = true;
            record.succeeded = succeeded;
        }
    }

    pub(crate) fn check_report_delivered(&mut self, attempt: u64, _replica: usize) {
        let now = self.now;
        if let Some(record) = self.ledger.attempts.get_mut(&attempt) {
            record.delivered_at.get_or_insert(now);
        }
    }

    pub(crate) fn check_ended(&mut self, attempt: u64) {
        if let Some(record) = self.ledger.attempts.get_mut(&attempt) {
            record.ended = true;
        }
    }

    pub(crate) fn check_attempt_died(&mut self, attempt: u64) {
        self.check_ended(attempt);
    }

    pub(crate) fn check_acknowledged(&mut self, _attempt: u64, _accepted: bool) {}

    /// An input is not there. Only an attempt that does not count any more may find it gone.
    pub(crate) fn check_missing_input(&mut self, attempt: u64, key: &str) {
        let Some(record) = self.ledger.attempts.get(&attempt) else {
            return;
        };
        let (uid, work) = record.task.clone();
        let last = self.ledger.tasks[&record.task].attempts.last() == Some(&attempt);
        let job = self.ledger.jobs.get(&uid);
        let over = job.is_some_and(|job| job.cancelled || job.deadline || job.ended.is_some());
        let deleted = self.ledger.deleted.contains(key);
        let counts = last && record.by_leader && !record.stop_sent;
        if counts && !over && deleted && self.plan_is_current(&uid, &work) {
            let words = format!(
                "{key} was deleted before attempt {attempt} of {} of {uid} had read it",
                work.name()
            );
            self.violated("inputs", words);
        }
    }

    /// Whether no later plan of the job was begun.
    fn plan_is_current(&self, uid: &Arc<str>, work: &Work) -> bool {
        let later =
            self.ledger.tasks.keys().any(|(other, task)| {
                other == uid && task.kind == Kind::Plan && task.reduction > work.reduction
            });
        !later
    }

    /// A call of an attempt was refused: only what has lost its lease may be told so.
    pub(crate) fn check_refused(&mut self, attempt: u64, answer: &wire::Answer) {
        if answer.error_kind() != wire::ErrorKind::LeaseLost {
            let words = format!("a call of attempt {attempt} is refused: {}", answer.error);
            self.violated("calls", words);
        }
    }

    /// A verifier has read the proof that it says is good.
    pub(crate) fn check_verified(&mut self, uid: &str, work: &Work, proof: &Content) {
        if proof.segments != Content::all(work.total) || proof.total != work.total {
            let words = format!(
                "the proof of {uid} has segments {:b} of {}",
                proof.segments, work.total
            );
            self.violated("whole-proof", words);
        }
    }

    // ---- what coordinators are told ----

    pub(crate) fn check_cancel_told(&mut self, replica: usize, uid: &Arc<str>) {
        let now = self.now;
        let job = self.ledger.jobs.entry(uid.clone()).or_default();
        if job.ended.is_some() {
            return;
        }
        let incarnation = self.replicas[replica].incarnation;
        let told = (replica, incarnation);
        if job.cancel_told.is_none_or(|(before, _)| before != told) {
            job.cancel_told = Some((told, now));
        }
        let uid = uid.clone();
        self.after(
            WITHIN,
            Happening::Judge(Judgement::Stopped {
                uid,
                replica,
                incarnation,
                since: now,
            }),
        );
    }

    pub(crate) fn check_policy_told(&mut self, replica: usize, uid: &Arc<str>, policy: &JobPolicy) {
        let Some(deadline) = policy.deadline else { return };
        let incarnation = self.replicas[replica].incarnation;
        let ahead = self.replicas[replica].clock_ahead;
        let deadline = deadline.0.saturating_sub(ahead).max(self.now);
        let uid = uid.clone();
        self.at(
            deadline + WITHIN,
            Happening::Judge(Judgement::DeadlineOver {
                uid,
                replica,
                incarnation,
                deadline,
            }),
        );
    }

    // ---- store and API server ----

    /// An object of the log was created: by the process that began the last epoch, or to begin the next one.
    pub(crate) fn check_log_created(&mut self, replica: usize, incarnation: u64, begins: bool, name: &str) {
        let sequence: u64 = name.trim_start_matches("log/").parse().unwrap_or(0);
        let last = self.ledger.last_sequence;
        // What a checkpoint covers and deleted may be created again, by a request that was long on its way or by a
        // reader that was passed: it looks for a checkpoint afterwards, and nobody else reads it.
        if last.is_some_and(|last| sequence <= last) {
            return;
        }
        self.ledger.last_sequence = Some(sequence);
        let writer = (replica, incarnation);
        if begins {
            self.ledger.leader = Some(writer);
        } else if self.ledger.leader != Some(writer) {
            let words = format!("r{replica} created {name} though another one leads since");
            self.violated("stale-epoch", words);
        }
    }

    /// Whether a process began the last epoch. Another one may believe that it leads until its next write fails:
    /// what it gives away meanwhile can't be prevented, but nothing of it may ever count.
    fn leads(&self, replica: usize) -> bool {
        self.ledger.leader == Some((replica, self.replicas[replica].incarnation))
    }

    /// A sweep of a deleted job's prefix takes nothing that an attempt of another job is to read.
    pub(crate) fn check_swept(&mut self, key: &Arc<str>) {
        let reads =
            |attempt: &&crate::worker::Attempt| attempt.assign.inputs.iter().any(|input| *input.key == **key);
        let readers: Vec<u64> = self
            .workers
            .iter()
            .flat_map(|worker| worker.attempts.values().filter(reads))
            .map(|attempt| attempt.assign.attempt_id)
            .collect();
        for attempt in readers {
            let Some(record) = self.ledger.attempts.get(&attempt) else {
                continue;
            };
            let (uid, work) = record.task.clone();
            let job = self.ledger.jobs.get(&uid);
            let over = job.is_some_and(|job| job.cancelled || job.deadline || job.ended.is_some());
            let others = &self.ledger.tasks[&record.task].attempts;
            let done = others.iter().any(|other| self.ledger.attempts[other].succeeded);
            let counts = record.by_leader && !record.stop_sent && !record.ended && !done;
            if counts && others.last() == Some(&attempt) && !over && self.plan_is_current(&uid, &work) {
                let words =
                    format!("{key} is swept with its job, though attempt {attempt} of {uid} reads it");
                self.violated("held", words);
            }
        }
    }

    pub(crate) fn check_deleted(&mut self, key: &Arc<str>) {
        self.ledger.deleted.insert(key.clone());
        let proof = self
            .ledger
            .jobs
            .values()
            .any(|job| job.ended == Some(ApiPhase::Succeeded) && job.proof.as_ref() == Some(key));
        if proof {
            self.violated("retained", format!("{key} is the proof of a job and is deleted"));
        }
    }

    pub(crate) fn check_status(&mut self, uid: &Arc<str>, phase: &ApiPhase, proof: Option<&Arc<str>>) {
        let job = self.ledger.jobs.entry(uid.clone()).or_default();
        if let Some(ended) = &job.ended {
            if ended != phase {
                let words = format!("{uid} was {ended:?} and is said to be {phase:?} now");
                self.violated("ends-once", words);
            }
            return;
        }
        if !phase.is_terminal() {
            return;
        }
        job.ended = Some(phase.clone());
        job.proof = proof.cloned();
        let (cancelled, deadline) = (job.cancelled, job.deadline);
        let model = self.models[uid].clone();
        match phase {
            ApiPhase::Succeeded => {
                let content = proof.and_then(|key| self.store.objects.get(key)).cloned();
                let whole = match content {
                    Some(Object::Artifact(content)) => {
                        content.program == model.program && content.segments == Content::all(content.total)
                    }
                    _ => false,
                };
                if !whole {
                    let words = format!("{uid} is said to be proved, but {proof:?} is {content:?}");
                    self.violated("whole-proof", words);
                }
                if model.poison.is_some() && !model.cacheable {
                    let words = format!("{uid} is proved, though nobody can prove one of its segments");
                    self.violated("whole-proof", words);
                }
            }
            ApiPhase::Cancelled if !cancelled => {
                self.violated(
                    "not-lost",
                    format!("{uid} is cancelled, but nobody asked for that"),
                );
            }
            ApiPhase::Failed(reason) => {
                let expected = match &**reason {
                    "DeadlineExceeded" | "ActiveDeadlineExceeded" => deadline,
                    "TaskQuarantined" | "RetryLimitExceeded" => model.poison.is_some(),
                    _ => false,
                };
                if !expected {
                    let words = format!("{uid} failed with {reason}, but nothing was wrong with it");
                    self.violated("not-lost", words);
                }
            }
            _ => {}
        }
    }

    // ---- judgements ----

    pub(crate) fn all_ended(&self) -> bool {
        self.jobs.iter().all(|job| {
            self.api
                .jobs
                .get(&job.uid)
                .is_some_and(|job| job.phase.as_ref().is_some_and(ApiPhase::is_terminal) || job.removed)
        })
    }

    pub(crate) fn judge(&mut self, judgement: Judgement) {
        match judgement {
            Judgement::AllEnded => {
                if !self.all_ended() {
                    let left: Vec<String> = self
                        .api
                        .jobs
                        .values()
                        .filter(|job| !job.phase.as_ref().is_some_and(ApiPhase::is_terminal))
                        .map(|job| format!("{} is {:?}", job.uid, job.phase))
                        .collect();
                    self.tell_beliefs();
                    self.violated(
                        "liveness",
                        format!("after everything has healed {}", left.join(", ")),
                    );
                }
            }
            Judgement::Clean => self.judge_clean(),
            Judgement::Stopped {
                uid,
                replica,
                incarnation,
                since,
            } => {
                if self.replicas[replica].incarnation == incarnation {
                    self.judge_stopped(&uid, replica, since);
                }
            }
            Judgement::DeadlineOver {
                uid,
                replica,
                incarnation,
                deadline,
            } => self.judge_deadline(&uid, replica, incarnation, deadline),
        }
    }

    fn judge_stopped(&mut self, uid: &Arc<str>, replica: usize, since: u64) {
        let paused = self.replicas[replica].paused_until + WITHIN > self.now;
        if paused || self.replicas[replica].lead.is_none() || !self.leads(replica) {
            return;
        }
        let running: Vec<u64> = self
            .ledger
            .attempts
            .iter()
            .filter(|(_, record)| record.task.0 == *uid && !record.ended && !record.stop_sent)
            .filter(|(_, record)| record.sent_at <= since)
            .map(|(id, _)| *id)
            .collect();
        for attempt in running {
            let record = &self.ledger.attempts[&attempt];
            let heard = self.ledger.heard.get(&(record.place, record.process));
            let reachable = heard.is_some_and(|heard| {
                heard.replica == replica && heard.attempts.contains(&attempt) && heard.at > since
            });
            if reachable {
                let words = format!("attempt {attempt} of {uid} was not told to stop within a second");
                self.violated("cancel", words);
            }
        }
    }

    fn judge_deadline(&mut self, uid: &Arc<str>, replica: usize, incarnation: u64, deadline: u64) {
        if self.replicas[replica].incarnation != incarnation {
            return;
        }
        // It may have been changed meanwhile.
        let job = self.replicas[replica].jobs.get(uid);
        let ahead = self.replicas[replica].clock_ahead;
        let current = job
            .and_then(|job| job.deadline)
            .map(|at| (at + crate::replica::ORIGIN).saturating_sub(ahead));
        if current.is_none_or(|current| current > deadline) {
            return;
        }
        self.judge_stopped(uid, replica, deadline);
        let paused = self.replicas[replica].paused_until + WITHIN > self.now;
        if !paused && self.leads(replica) && self.replica_says_unfinished(replica, uid) {
            self.violated("deadline", format!("{uid} goes on a second after its deadline"));
        }
    }

    /// After all jobs were forgotten the store holds their proofs and nothing else that was ever bound.
    fn judge_clean(&mut self) {
        let proofs: BTreeSet<Arc<str>> = self
            .ledger
            .jobs
            .values()
            .filter_map(|job| job.proof.clone())
            .collect();
        if let Some(lost) = proofs.iter().find(|key| !self.store.objects.contains_key(*key)) {
            let words = format!("{lost} is the proof of a job and is not in the store");
            return self.violated("retained", words);
        }
        let mut left = Vec::new();
        for (key, object) in &self.store.objects {
            if proofs.contains(key) || matches!(object, Object::Torn | Object::Bytes(_)) {
                continue;
            }
            if self.ledger.lost_leaders == 0 && !self.is_left_over(key) {
                left.push(key.to_string());
            }
        }
        if let Some(job) = self.api.jobs.values().find(|job| !job.removed) {
            return self.violated("liveness", format!("{} was deleted and is still there", job.uid));
        }
        if left.is_empty() {
            self.ledger.clean = true;
        } else {
            self.violated("leak", format!("nothing refers to {} any more", left.join(", ")));
        }
    }

    /// Output of an attempt whose success was not its task's: the sweep of the job's prefix collects it.
    fn is_left_over(&self, key: &str) -> bool {
        let Some((_, rest)) = key.split_once("/attempts/") else {
            return false;
        };
        let Some((attempt, name)) = rest.split_once('/') else {
            return false;
        };
        let Ok(attempt) = attempt.parse::<u64>() else {
            return false;
        };
        let accepted = self.ledger.attempts.get(&attempt).is_some_and(|record| {
            self.ledger
                .tasks
                .get(&record.task)
                .is_some_and(|task| task.accepted == Some(attempt))
        });
        // What a plan retained and another plan replaced is kept as a proof is.
        !accepted || name == PROOF
    }
}
