//! A coordinator's log in the simulated store, the Lease that hints at who leads, and taking over.
//!
//! The protocol is the production machine (`prover_log::Machine`); this is the store that it talks to, with everything
//! that a store may do: requests that fail, that are carried out though their answer is lost, that are carried out
//! twice or late.

use std::sync::Arc;
use std::time::Duration;

use prover_log::{
    Answer, AppendError, CheckpointContent, CheckpointError, Failure, Index, Machine, Operation, Phase,
    Progress, RequestId, WriterId,
};

use crate::random::Random;
use prover_coordinator::engine::{Record, Replica as Known};

use crate::replica::{self, Replica};
use crate::store::Object;
use crate::trace::note;
use crate::world::{Happening as Any, World};

/// Below it lies the log.
const PREFIX: &str = "cluster/";
/// How often a coordinator looks at the Lease, and renews it where it leads.
const LEASE_EVERY: u64 = 500;
/// Age of a Lease at which another may take it.
const LEASE_SPAN: u64 = 3_000;
/// How often a standby reads on.
const FOLLOW_EVERY: u64 = 1_000;

/// A request on its way to the store.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) replica: usize,
    pub(crate) incarnation: u64,
    pub(crate) id: RequestId,
    pub(crate) operation: Operation,
    /// It was sent to take over: what it creates is the beginning of an epoch.
    pub(crate) takes_over: bool,
}

/// The limits of the log of one run: small, so that checkpoints come.
pub(crate) fn limits(setting: &mut Random) -> prover_log::Limits {
    let due = setting.between(4, 60);
    prover_log::Limits {
        commit_interval: Duration::from_millis(*setting.pick(&[0, 50, 50, 400])),
        checkpoint_due_objects: due,
        max_objects: due * 4,
        retained_objects: *setting.pick(&[0, 3, 30]),
        listed_objects: *setting.pick(&[200, 10_000]),
        parallel_reads: *setting.pick(&[1, 4, 32]),
        request_timeout: Duration::from_secs(*setting.pick(&[2, 10])),
        relist_interval: Duration::from_secs(5),
        ..prover_log::Limits::default()
    }
}

impl World {
    /// A process begins: it reads the log and waits for its turn.
    pub(crate) fn start_replica(&mut self, index: usize) {
        let replica = &mut self.replicas[index];
        if replica.up {
            return;
        }
        replica.incarnation += 1;
        replica.up = true;
        replica.paused_until = 0;
        replica.born = self.now;
        replica.jobs.clear();
        replica.known = Some(Known::new(self.limits.clone()));
        replica.taking_over = false;
        replica.log_wake_at = None;
        replica.followed_at = self.now;
        // No two machines share a writer.
        let writer = WriterId(u128::from(replica.incarnation) << 8 | index as u128);
        let mut machine = Machine::new(writer, self.log_limits.clone());
        machine.catch_up();
        replica.machine = Some(machine);
        note!(self, index, self.replicas[index].incarnation, "r{index}: starts");
        self.for_replica(index, 1, replica::Happening::LeaseTick);
        self.show_all_jobs(index);
        self.log_turn(index);
    }

    /// A process dies, and another one starts in its place after a while.
    pub(crate) fn crash_replica(&mut self, index: usize) {
        if !self.replicas[index].up {
            return;
        }
        note!(self, index, 0, "r{index}: dies");
        self.end_replica(index);
        let after = self.random.between(200, 8_000);
        self.after(after, Any::StartReplica { replica: index });
    }

    fn end_replica(&mut self, index: usize) {
        let replica = &mut self.replicas[index];
        replica.up = false;
        replica.incarnation += 1;
        let led = replica.lead.take().is_some();
        replica.machine = None;
        replica.paused_until = 0;
        let streams: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.replica == index && connection.replica_open)
            .map(|(id, _)| *id)
            .collect();
        self.ledger.replica_ended(index, led);
        for stream in streams {
            self.replica_side_ends(stream);
        }
    }

    pub(crate) fn heal_replicas(&mut self) {
        for index in 0..self.replicas.len() {
            self.start_replica(index);
        }
    }

    // ---- the Lease ----

    pub(crate) fn lease_tick(&mut self, index: usize) {
        self.for_replica(index, LEASE_EVERY, replica::Happening::LeaseTick);
        let reachable = self.now >= self.api.away_until;
        let replica = &mut self.replicas[index];
        let holder = (index, replica.incarnation);
        if replica.lead.is_some() || replica.taking_over {
            // It goes on where it can't renew: only the log decides.
            if reachable && self.api.lease.holder == Some(holder) {
                self.api.lease.renewed_at = self.now;
            }
            return;
        }
        let Some(machine) = &mut replica.machine else {
            return;
        };
        let caught_up = machine.phase() == Phase::CaughtUp;
        if caught_up && self.now >= replica.followed_at + FOLLOW_EVERY {
            replica.followed_at = self.now;
            machine.catch_up();
        }
        let expired = self.api.lease.holder.is_none() || self.now - self.api.lease.renewed_at > LEASE_SPAN;
        let skew = self.faults.clock_skew;
        // Whose clock is wrong may find a Lease too old that is not.
        let mistaken = skew > 1_000 && self.random.chance(20);
        if reachable && caught_up && (expired || mistaken) {
            note!(self, index, 0, "r{index}: takes the Lease and takes over");
            self.api.lease.holder = Some(holder);
            self.api.lease.renewed_at = self.now;
            let replica = &mut self.replicas[index];
            replica.taking_over = true;
            if let Some(machine) = &mut replica.machine {
                machine.take_over();
            }
        }
        self.log_turn(index);
    }

    // ---- the log ----

    /// Sends what the machine wants to send, and acts on what it has come to.
    pub(crate) fn log_turn(&mut self, index: usize) {
        let now = self.now;
        let store_latency = self.faults.store_latency.max(1);
        let replica = &mut self.replicas[index];
        let incarnation = replica.incarnation;
        let Some(machine) = &mut replica.machine else {
            return;
        };
        let requests = machine.poll(Duration::from_millis(now - replica.born));
        let takes_over = machine.phase() == Phase::TakingOver;
        let mut unreadable = None;
        for replayed in machine.take_replayed() {
            if let Some(known) = &mut replica.known
                && let Err(error) = known.apply(replayed)
            {
                unreadable.get_or_insert(error.to_string());
            }
        }
        let refused = machine.take_refusal();
        let (phase, progress, wake) = (machine.phase(), machine.progress(), machine.wake_at());
        for request in requests {
            let after = self.random.between(1, store_latency);
            let sent = Sent {
                replica: index,
                incarnation,
                id: request.id,
                operation: request.operation,
                takes_over,
            };
            self.after(after, Any::Store(Box::new(sent)));
        }
        if let Some(wake) = wake {
            let at = self.replicas[index].born + wake.as_millis() as u64;
            let at = at.max(now + 1);
            if self.replicas[index]
                .log_wake_at
                .is_none_or(|before| at < before || before <= now)
            {
                self.replicas[index].log_wake_at = Some(at);
                self.for_replica(index, at - now, replica::Happening::LogWake);
            }
        }
        if let Some(error) = unreadable {
            return self.violated("log", format!("r{index} can't understand the log: {error}"));
        }
        if refused.is_some() {
            self.replicas[index].taking_over = false;
        }
        match phase {
            Phase::Leading { epoch } if self.replicas[index].lead.is_none() => self.begin_lead(index, epoch),
            Phase::Leading { .. } => self.log_progressed(index, &progress),
            Phase::Fenced { epoch } => self.fenced(index, epoch),
            Phase::Failed(error) => self.violated("log", format!("the log of r{index} failed: {error}")),
            Phase::Reading | Phase::CaughtUp | Phase::TakingOver => {}
        }
    }

    /// The log of a leader got on: what waited for it happens.
    fn log_progressed(&mut self, index: usize, progress: &Progress) {
        let Some(lead) = self.lead(index) else { return };
        if progress.committed.0 > lead.committed {
            lead.committed = progress.committed.0;
            lead.engine.committed(progress.committed.0);
            self.engine_does(index, None);
        }
        let Some(lead) = self.lead(index) else { return };
        if progress.checkpoint_due && lead.appended == lead.engine.recorded() {
            let records = lead.engine.checkpoint();
            let through = Index(lead.engine.recorded());
            let records: Vec<Vec<u8>> = records.iter().map(Record::encode).collect();
            note!(
                self,
                index,
                through.0,
                "r{index}: makes a checkpoint through {}",
                through.0
            );
            let content = CheckpointContent::new(&records, &self.log_limits);
            let machine = self.replicas[index].machine.as_mut();
            let taken = match (machine, content) {
                (Some(machine), Ok(content)) => machine.checkpoint(content, through),
                (None, _) => Ok(()),
                (_, Err(error)) => Err(error),
            };
            if let Err(error) = taken
                && !matches!(error, CheckpointError::Running | CheckpointError::NotLeading)
            {
                return self.violated("log", format!("a checkpoint is refused: {error}"));
            }
            // The machine is polled after each call, as the production shell does it: nothing else may ever wake it, where
            // commits wait for this checkpoint.
            self.log_turn(index);
        }
    }

    /// Gives the log what the engine has recorded. True: there was something.
    pub(crate) fn append_records(&mut self, index: usize) -> bool {
        let Some(lead) = self.lead(index) else {
            return false;
        };
        let groups = lead.engine.take_records();
        let mut any = false;
        for group in groups {
            any = true;
            let records: Vec<Vec<u8>> = group.iter().map(Record::encode).collect();
            let count = records.len() as u64;
            let Some(machine) = &mut self.replicas[index].machine else {
                return any;
            };
            match machine.append(&records) {
                Ok(last) => {
                    if let Some(lead) = self.lead(index) {
                        lead.appended += count;
                        let appended = lead.appended;
                        if last.0 != appended {
                            self.violated(
                                "log",
                                format!("{appended} records were appended, the log counts {}", last.0),
                            );
                        }
                    }
                }
                // It is told so by the machine's phase.
                Err(AppendError::Fenced { .. }) => {}
                Err(error) => self.violated("log", format!("records are refused: {error}")),
            }
        }
        any
    }

    /// Another one leads: the process ends at once.
    fn fenced(&mut self, index: usize, epoch: u64) {
        note!(self, index, epoch, "r{index}: is fenced by epoch {epoch}");
        self.end_replica(index);
        let after = self.random.between(50, 2_000);
        self.after(after, Any::StartReplica { replica: index });
    }

    pub(crate) fn log_wake(&mut self, index: usize) {
        let replica = &mut self.replicas[index];
        if replica.log_wake_at.is_some_and(|at| at <= self.now) {
            replica.log_wake_at = None;
            self.log_turn(index);
        }
    }

    pub(crate) fn log_answered(&mut self, index: usize, id: RequestId, answer: Answer) {
        let now = Duration::from_millis(self.now - self.replicas[index].born);
        if let Some(machine) = &mut self.replicas[index].machine {
            machine.answer(id, answer, now);
        }
        self.log_turn(index);
    }

    /// A request has reached the store.
    pub(crate) fn store_does(&mut self, sent: Sent) {
        let (errors, lost) = (self.faults.store_error, self.faults.store_lost_answer);
        if self.now < self.store.away_until || self.random.chance(errors) {
            // Away stores mostly say nothing at all.
            if self.random.chance(500) {
                self.store_answers(&sent, failed());
            }
            return;
        }
        let answer = self.carry_out(&sent);
        if self.random.chance(lost) {
            match self.random.below(3) {
                0 => {}
                1 => self.store_answers(&sent, failed()),
                _ => {
                    // A proxy on the way sends it again: it is carried out twice, the second time much later.
                    self.store_answers(&sent, failed());
                    let after = self.random.between(1, 20_000);
                    self.after(after, Any::Store(Box::new(sent)));
                }
            }
            return;
        }
        self.store_answers(&sent, answer);
    }

    fn store_answers(&mut self, sent: &Sent, answer: Answer) {
        let after = self.random.between(1, self.faults.store_latency.max(1));
        let what = replica::Happening::LogAnswer { id: sent.id, answer };
        self.for_incarnation(sent.replica, sent.incarnation, after, what);
    }

    fn carry_out(&mut self, sent: &Sent) -> Answer {
        match &sent.operation {
            Operation::Create { name, content } => {
                let key: Arc<str> = format!("{PREFIX}{name}").into();
                let bytes = Object::Bytes(content.to_vec().into());
                if !self.store.create(&key, bytes, self.now) {
                    return Answer::Exists;
                }
                note!(
                    self,
                    sent.replica,
                    content.len(),
                    "r{}: creates {name}",
                    sent.replica
                );
                if name.starts_with("log/") {
                    self.check_log_created(sent.replica, sent.incarnation, sent.takes_over, name);
                }
                Answer::Created
            }
            Operation::Read { name, .. } => match self.store.get(&format!("{PREFIX}{name}")) {
                Some(Object::Bytes(bytes)) => Answer::Content(bytes.to_vec().into()),
                _ => Answer::Absent,
            },
            Operation::Delete { name } => {
                note!(self, sent.replica, 0, "r{}: deletes {name}", sent.replica);
                self.store.delete(&format!("{PREFIX}{name}"));
                Answer::Deleted
            }
            Operation::List { folder, limit } => {
                // Lists are consistent wherever conditional creation is (S3, MinIO, GCS): the protocol relies on it.
                let keys = self.store.list(&format!("{PREFIX}{folder}"), self.now);
                let names = keys.iter().take(*limit);
                let names = names.map(|key| key[PREFIX.len()..].to_owned()).collect();
                let truncated = keys.len() > *limit;
                Answer::Listed { names, truncated }
            }
        }
    }
}

fn failed() -> Answer {
    Answer::Failed(Failure {
        retry: true,
        damaged: false,
        category: "simulated",
        problem: "simulated".to_owned(),
    })
}

/// A place for a coordinator, without a process in it.
pub(crate) fn mk_replica(clock_ahead: u64) -> Replica {
    Replica {
        incarnation: 0,
        up: false,
        paused_until: 0,
        clock_ahead,
        born: 0,
        machine: None,
        known: None,
        taking_over: false,
        log_wake_at: None,
        followed_at: 0,
        lead: None,
        jobs: std::collections::BTreeMap::new(),
    }
}
