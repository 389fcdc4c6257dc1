//! What the watches tell: new jobs, changed ones, those that are being deleted or are gone.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use prover_coordinator::Timestamp;
use prover_crds::{Phase, ProofJob, ProofJobStatus, conditions, reasons};

use super::entry::{Job, Stage, has_ended, policy_of};
use super::judge::{Candidate, Unfinished, Verdict, judge};
use super::watch::{Sighting, name_of};
use super::{Jobs, PARALLEL_ADMISSIONS};
use crate::events;
use crate::status::{self, Ending, Situation, Surroundings};
use crate::writer::JobName;

/// Conditions that the coordinator writes; others belong to others.
const OWN_CONDITIONS: [&str; 9] = [
    conditions::ACCEPTED,
    conditions::RUNNING,
    conditions::SUSPENDED,
    conditions::FINISHED,
    conditions::SUCCEEDED,
    conditions::FAILED,
    conditions::CANCELLED,
    conditions::ARTIFACTS_COLLECTED,
    conditions::PROOF_DELETED,
];

/// A status without what others wrote into it: applying it would take that over.
pub(super) fn own_part(status: Option<&ProofJobStatus>) -> ProofJobStatus {
    let mut status = status.cloned().unwrap_or_default();
    status
        .conditions
        .retain(|condition| OWN_CONDITIONS.contains(&condition.type_.as_str()));
    status
}

impl Jobs {
    pub(super) async fn sighted(&mut self, sighting: Sighting) {
        match sighting {
            Sighting::Seen(object) => self.seen(object).await,
            Sighting::Gone(name) => self.gone(&name).await,
            Sighting::Listed { namespace, present } => self.listed(&namespace, &present).await,
        }
    }

    async fn listed(&mut self, namespace: &Arc<str>, present: &BTreeSet<Arc<str>>) {
        if let Some(watch) = self.watches.get_mut(namespace) {
            watch.listed = true;
        }
        let missing = |name: &&JobName| name.namespace == *namespace && !present.contains(&name.uid);
        let gone: Vec<JobName> = self
            .jobs
            .keys()
            .chain(&self.done)
            .filter(missing)
            .cloned()
            .collect();
        for name in gone {
            self.gone(&name).await;
        }
        if !self.leads {
            self.show_synced();
            return;
        }
        // Jobs that were accepted before count before new ones ask.
        let mut undecided: Vec<(bool, JobName)> = self
            .jobs
            .iter()
            .filter(|(name, job)| name.namespace == *namespace && matches!(job.stage, Stage::Unknown))
            .map(|(name, job)| (!job.accepted, name.clone()))
            .collect();
        undecided.sort();
        for (_, name) in undecided {
            self.judge_again(&name);
        }
        self.show_synced();
    }

    async fn seen(&mut self, object: Box<ProofJob>) {
        let Some(name) = name_of(&object.metadata) else {
            return;
        };
        let deleting = object.metadata.deletion_timestamp.is_some();
        if !self.leads {
            self.seen_in_advance(name, &object);
        } else if self.jobs.contains_key(&name) {
            self.seen_again(&name, &object).await;
        } else if self.done.contains(&name) || has_ended(&object) {
            self.done.insert(name.clone());
            if let Some(status) = &object.status {
                self.retained.note(&name, status);
            }
            let conditions = object.status.as_ref().map(|status| status.conditions.as_slice());
            let collected =
                conditions.is_some_and(|list| conditions::is_true(list, conditions::ARTIFACTS_COLLECTED));
            if deleting && !collected {
                self.collect_done(&name, &object);
            }
        } else {
            self.seen_first(&name, object);
        }
    }

    fn seen_first(&mut self, name: &JobName, object: Box<ProofJob>) {
        let now = self.now();
        let defaults = self
            .rules
            .cluster
            .as_ref()
            .map(|cluster| cluster.defaults.clone());
        let job = Job::new(&object, &defaults.unwrap_or_default(), now);
        let deleting = job.deleting;
        self.writer.known(name, own_part(object.status.as_ref()));
        self.writer.seen(name, object.metadata.resource_version.clone());
        self.jobs.insert(name.clone(), job);
        if deleting {
            self.end_early(name, deleted());
            return;
        }
        let listed = self
            .watches
            .get(&name.namespace)
            .is_some_and(|watch| watch.listed);
        if listed {
            self.judge_again(name);
            // The object is at hand: where there is room it need not be fetched again.
            if self.admissions.len() < PARALLEL_ADMISSIONS {
                self.admit_now(name, Some(object));
            }
        }
    }

    async fn seen_again(&mut self, name: &JobName, object: &ProofJob) {
        let defaults = self
            .rules
            .cluster
            .as_ref()
            .map(|cluster| cluster.defaults.clone());
        let policy = policy_of(&object.spec, &defaults.unwrap_or_default());
        self.writer.seen(name, object.metadata.resource_version.clone());
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        let deleting = object.metadata.deletion_timestamp.is_some() && !job.deleting;
        job.deleting |= deleting;
        let changed = job.generation != object.metadata.generation;
        job.generation = object.metadata.generation;
        if !changed && !deleting {
            return;
        }
        let other_policy = std::mem::replace(&mut job.policy, policy) != policy;
        let cancel = object.spec.cancel && !std::mem::replace(&mut job.cancel, object.spec.cancel);
        if other_policy {
            self.clamp_priority(name);
            self.change_slot(name);
        }
        let Some(job) = self.jobs.get(name) else { return };
        match &job.stage {
            Stage::Taken { handle, .. } => {
                let (handle, policy) = (handle.clone(), job.core_policy());
                // A coordinator that has stopped has no jobs left to change.
                if other_policy {
                    let _ = handle.set_policy(policy).await;
                }
                if cancel || deleting {
                    let _ = handle.cancel().await;
                }
                self.show(name);
            }
            Stage::Unknown | Stage::Refused | Stage::Backlog | Stage::Retrying { .. } if deleting => {
                self.end_early(name, deleted());
            }
            Stage::Unknown | Stage::Refused | Stage::Backlog | Stage::Retrying { .. } => {
                self.judge_again(name);
                self.show(name);
            }
            // Its admission looks at all of it when it ends.
            Stage::Admitting => self.show(name),
            Stage::Ended | Stage::Collecting { .. } | Stage::Collected(_) => {
                if deleting && self.writer.is_settled(name) {
                    self.end_written(name).await;
                }
            }
        }
    }

    /// A suspended job needs no place, one that goes on does.
    fn change_slot(&mut self, name: &JobName) {
        if self.jobs.get(name).is_some_and(|job| job.policy.suspended) {
            self.free_slot(name);
        } else {
            self.try_slot(name);
        }
    }

    /// A job that the core has keeps a priority that its namespace may use.
    pub(super) fn clamp_priority(&mut self, name: &JobName) {
        let cluster = self.rules.cluster.as_ref();
        let most = cluster
            .and_then(|cluster| cluster.namespace(&name.namespace))
            .and_then(|bounds| bounds.max_priority);
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        if let Some(most) = most.filter(|most| job.policy.priority > *most)
            && job.accepted
        {
            let text = format!(
                "spec.priority is {}, but jobs of this namespace may have at most {most}, which it gets",
                job.policy.priority
            );
            job.policy.priority = most;
            self.parts.teller.tell(name, events::priority_too_high(text));
        }
    }

    /// The object is gone: nothing is written to it any more, and what the job left is collected.
    pub(super) async fn gone(&mut self, name: &JobName) {
        self.done.remove(name);
        self.retained.remove(name);
        self.uncollected.remove(name);
        self.writer.forget(name);
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        job.gone = true;
        match &job.stage {
            Stage::Unknown | Stage::Refused | Stage::Backlog | Stage::Retrying { .. } => self.remove(name),
            Stage::Ended | Stage::Collected(_) => self.remove(name),
            Stage::Admitting | Stage::Collecting { .. } => {}
            Stage::Taken { handle, .. } => {
                let handle = handle.clone();
                if handle.view().phase.is_terminal() {
                    self.refresh(name, true).await;
                } else {
                    // A coordinator that has stopped has no jobs left to cancel.
                    let _ = handle.cancel().await;
                }
            }
        }
    }

    /// Forgets all that is kept of a job.
    pub(super) fn remove(&mut self, name: &JobName) {
        self.count(name, false);
        self.free_slot(name);
        if let Some(job) = self.jobs.remove(name) {
            if let Some(turn) = job.turn {
                self.backlog.remove(&turn);
            }
            if let Some(at) = job.timer {
                self.timers.remove(&(at, name.clone()));
            }
        }
        self.writer.forget(name);
        self.sweep_queue.remove(name);
    }

    /// Decides about a job that the core does not have.
    pub(super) fn judge_again(&mut self, name: &JobName) {
        if !self.leads {
            return;
        }
        let now = self.now();
        let Some(job) = self.jobs.get(name) else { return };
        let candidate = Candidate {
            namespace: &name.namespace,
            proof: &job.proof,
            policy: &job.policy,
            cancelled: job.cancel,
            accepted_before: job.accepted,
        };
        let own = usize::from(job.counted);
        let unfinished = Unfinished {
            in_all: self.unfinished_in_all.saturating_sub(own),
            of_namespace: self
                .unfinished
                .get(&name.namespace)
                .copied()
                .unwrap_or_default()
                .saturating_sub(own),
        };
        match judge(&candidate, &self.rules, unfinished, now) {
            Verdict::Unknown => {}
            Verdict::End(ending) => self.end_early(name, ending),
            Verdict::Refuse { reason, message } => self.refuse(name, reason, message),
            Verdict::Accept => self.accept(name, now),
        }
        self.set_deadline_timer(name);
    }

    pub(super) fn set_deadline_timer(&mut self, name: &JobName) {
        let Some(job) = self.jobs.get(name) else { return };
        let retry = match &job.stage {
            Stage::Retrying { at } => Some(*at),
            Stage::Unknown | Stage::Refused | Stage::Backlog => None,
            _ => return,
        };
        if let Some(at) = [retry, job.policy.deadline].into_iter().flatten().min() {
            self.set_timer(name, at);
        }
    }

    pub(super) fn refuse(&mut self, name: &JobName, reason: &'static str, message: String) {
        self.count(name, false);
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        let same = matches!(&job.situation, Situation::Refused { reason: before, .. } if *before == reason);
        if !same || !matches!(job.stage, Stage::Refused) {
            self.parts.metrics.refusals.with_label_values(&[reason]).inc();
        }
        if let Some(turn) = job.turn.take() {
            self.backlog.remove(&turn);
        }
        job.accepted = false;
        job.stage = Stage::Refused;
        job.situation = Situation::Refused { reason, message };
        self.show(name);
    }

    fn accept(&mut self, name: &JobName, now: Timestamp) {
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        if matches!(job.stage, Stage::Retrying { at } if at > now) {
            return;
        }
        if let Some(turn) = job.turn.take() {
            self.backlog.remove(&turn);
        }
        let first = !matches!(job.stage, Stage::Backlog | Stage::Retrying { .. });
        job.accepted = true;
        job.stage = Stage::Backlog;
        if first {
            job.situation = Situation::Waiting {
                reason: reasons::FETCHING_SOURCES,
                message: "program and input are put into the artifact store".to_owned(),
            };
        }
        let turn = job.mk_turn(name);
        job.turn = Some(turn.clone());
        self.backlog.insert(turn);
        self.count(name, true);
        if first {
            self.show(name);
        }
    }

    /// A job ends that the core never had.
    pub(super) fn end_early(&mut self, name: &JobName, ending: Ending) {
        self.count(name, false);
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        if let Some(turn) = job.turn.take() {
            self.backlog.remove(&turn);
        }
        job.stage = Stage::Ended;
        job.situation = Situation::Ended(ending);
        if job.gone {
            self.remove(name);
        } else {
            self.show(name);
        }
    }

    /// Counts a job among the accepted ones that have not ended, or does so no more.
    pub(super) fn count(&mut self, name: &JobName, counts: bool) {
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        if std::mem::replace(&mut job.counted, counts) == counts {
            return;
        }
        let of_namespace = self.unfinished.entry(Arc::clone(&name.namespace)).or_default();
        if counts {
            self.unfinished_in_all += 1;
            *of_namespace += 1;
        } else {
            self.unfinished_in_all = self.unfinished_in_all.saturating_sub(1);
            *of_namespace = of_namespace.saturating_sub(1);
            if *of_namespace == 0 {
                self.unfinished.remove(&name.namespace);
            }
            self.room = true;
        }
    }

    /// Wants the status that follows from what is known, and tells what changed.
    pub(super) fn show(&mut self, name: &JobName) {
        let now = self.now();
        let Some(before) = self.writer.latest(name) else {
            return;
        };
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        let nothing = Default::default();
        let cluster = self.rules.cluster.as_ref();
        let surroundings = Surroundings {
            generation: job.generation,
            suspended: job.policy.suspended,
            held: !job.slot,
            store: &self.parts.store_uri,
            prices: cluster.map_or(&nothing, |cluster| &cluster.prices),
        };
        let status = status::status(&job.situation, &surroundings, &before, &time_of(now));
        for note in events::notes(&before, &status, &mut job.chatter, now) {
            self.parts.teller.tell(name, note);
        }
        self.writer.want(name, status, now);
    }
}

fn time_of(now: Timestamp) -> Time {
    status::time(now)
}

/// How a job ends whose object is deleted before the core had it.
pub(super) fn deleted() -> Ending {
    Ending {
        phase: Phase::Cancelled,
        reason: reasons::CANCELLED.to_owned(),
        message: "the ProofJob is being deleted".to_owned(),
        invalid_input: false,
        accepted: false,
    }
}
