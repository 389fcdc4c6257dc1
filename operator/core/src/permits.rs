//! Permits: back-pressure of the store, in bytes, tied to the artifact that is put there.
//!
//! Every running job is guaranteed a part; what is left is shared, the job that holds least first. A permit is
//! released when the consumers of its artifact are terminal, when the artifact is dropped or the job is over; an
//! attempt that puts the same artifact again takes the permit over.

use std::collections::{BTreeSet, VecDeque};

use crate::action::{Action, Answer, Refusal};
use crate::attempts::{Lease, find_attempt};
use crate::model::{ArtifactName, AttemptId, CallId};
use crate::state::State;

/// What a job holds and waits for.
#[derive(Debug, Default)]
pub(crate) struct JobPermits {
    pub(crate) held: u64,
    /// Counted among the jobs that share.
    counted: bool,
    queue: VecDeque<Request>,
}

#[derive(Debug)]
struct Request {
    call: CallId,
    attempt: AttemptId,
    artifact: u32,
    bytes: u64,
}

/// All permits.
#[derive(Debug, Default)]
pub(crate) struct PermitPool {
    pub(crate) held: u64,
    jobs: u64,
    waiting: BTreeSet<u32>,
}

impl State {
    pub(crate) fn permit_job_started(&mut self) {
        self.permits.jobs += 1;
    }

    /// A job that was over before the recovery shares nothing.
    pub(crate) fn permit_job_was_over(&mut self, job: u32) {
        self.jobs[job].permits.counted = true;
    }

    pub(crate) fn permit_job_over(&mut self, job: u32, out: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.jobs[job].permits.counted, true) {
            self.permits.jobs -= 1;
        }
        self.permit_plan_dropped(job, out);
    }

    /// Nothing of a plan is put into the store any more.
    pub(crate) fn permit_plan_dropped(&mut self, job: u32, out: &mut Vec<Action>) {
        for index in 0..self.jobs[job].artifacts.len() {
            self.jobs[job].artifacts[index].permit_bytes = 0;
        }
        let permits = &mut self.jobs[job].permits;
        self.permits.held -= std::mem::take(&mut permits.held);
        for request in std::mem::take(&mut permits.queue) {
            self.answer(request.attempt, request.call, Err(Refusal::LeaseLost), out);
        }
        self.permits.waiting.remove(&job);
        self.grant_waiting(out);
    }

    /// Bytes that a job is guaranteed: never more than its equal part of all.
    fn guaranteed(&self) -> u64 {
        self.limits
            .permit_bytes_per_job
            .min(self.limits.permit_bytes / self.permits.jobs.max(1))
    }

    pub(crate) fn permit_requested(
        &mut self,
        call: CallId,
        attempt: AttemptId,
        job: u32,
        name: &ArtifactName,
        bytes: u64,
        out: &mut Vec<Action>,
    ) {
        let limit = self.limits.permit_bytes;
        if bytes > limit {
            let refusal = Refusal::LimitExceeded {
                what: "permit_bytes",
                limit,
            };
            return self.answer(attempt, call, Err(refusal), out);
        }
        let artifact = self.artifact_index(job, name);
        let has = self.jobs[job].artifacts[artifact as usize].permit_bytes;
        let request = Request {
            call,
            attempt,
            artifact,
            bytes,
        };
        if bytes <= has || self.relieves(attempt) || self.may_grant(job, bytes - has) {
            return self.grant(job, &request, out);
        }
        self.jobs[job].permits.queue.push_back(request);
        self.permits.waiting.insert(job);
    }

    /// Whether the attempt reads artifacts that hold permits: letting it put its output frees more than it takes,
    /// and making it wait could leave everybody waiting.
    fn relieves(&self, attempt: AttemptId) -> bool {
        let Some(attempt) = self.find_attempt(attempt) else {
            return false;
        };
        let entry = &self.attempts[attempt];
        let artifacts = &self.jobs[entry.job].artifacts;
        self.tasks[entry.task]
            .inputs
            .iter()
            .any(|input| artifacts[*input as usize].permit_bytes > 0)
    }

    fn may_grant(&self, job: u32, more: u64) -> bool {
        let held = self.jobs[job].permits.held;
        if held == 0 || held + more <= self.guaranteed() {
            return true;
        }
        // What is guaranteed to the others stays free for them.
        let others = self
            .permits
            .jobs
            .saturating_sub(1)
            .saturating_mul(self.guaranteed());
        let beyond: u64 = self.permits.held.saturating_sub(held).saturating_sub(others);
        others
            .saturating_add(beyond)
            .saturating_add(held)
            .saturating_add(more)
            <= self.limits.permit_bytes
    }

    fn grant(&mut self, job: u32, request: &Request, out: &mut Vec<Action>) {
        let artifact = &mut self.jobs[job].artifacts[request.artifact as usize];
        let more = request.bytes.saturating_sub(artifact.permit_bytes);
        artifact.permit_bytes += more;
        self.jobs[job].permits.held += more;
        self.permits.held += more;
        self.answer(request.attempt, request.call, Ok(Answer::Done), out);
    }

    pub(crate) fn release_permit(&mut self, job: u32, artifact: u32, out: &mut Vec<Action>) {
        let bytes = std::mem::take(&mut self.jobs[job].artifacts[artifact as usize].permit_bytes);
        self.jobs[job].permits.held -= bytes;
        self.permits.held -= bytes;
        self.grant_waiting(out);
    }

    /// Serves those that wait, the job that holds least first.
    fn grant_waiting(&mut self, out: &mut Vec<Action>) {
        loop {
            self.forget_dead_requests();
            let next = self
                .permits
                .waiting
                .iter()
                .copied()
                .filter(|job| {
                    let front = self.jobs[*job].permits.queue.front();
                    front.is_some_and(|request| self.may_grant(*job, request.bytes))
                })
                .min_by_key(|job| (self.jobs[*job].permits.held, *job));
            let Some(job) = next else { return };
            if let Some(request) = self.jobs[job].permits.queue.pop_front() {
                self.grant(job, &request, out);
            }
        }
    }

    /// Requests of attempts that ended need no answer.
    fn forget_dead_requests(&mut self) {
        let waiting: Vec<u32> = self.permits.waiting.iter().copied().collect();
        for job in waiting {
            let (attempts, adopted) = (&self.attempts, &self.adopted);
            let queue = &mut self.jobs[job].permits.queue;
            queue.retain(|request| {
                find_attempt(attempts, adopted, request.attempt)
                    .is_some_and(|attempt| attempts[attempt].lease == Lease::Held)
            });
            if queue.is_empty() {
                self.permits.waiting.remove(&job);
            }
        }
    }
}
