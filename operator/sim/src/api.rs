//! The simulated API server: ProofJobs with resource versions, conflicts, watches that lag behind, restarts.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::replica;
use crate::trace::note;
use crate::world::{Happening as Any, Wish, World};

/// What a job's status says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ApiPhase {
    Queued,
    Running,
    Suspended,
    Succeeded,
    /// With its reason.
    Failed(Arc<str>),
    Cancelled,
}

impl ApiPhase {
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(
            self,
            ApiPhase::Succeeded | ApiPhase::Failed(_) | ApiPhase::Cancelled
        )
    }
}

/// A job as the API server has it.
#[derive(Clone, Debug)]
pub(crate) struct ProofJob {
    pub(crate) uid: Arc<str>,
    pub(crate) index: usize,
    /// Changes with each write.
    pub(crate) version: u64,
    pub(crate) cancel: bool,
    pub(crate) suspend: bool,
    /// In true time.
    pub(crate) deadline: Option<u64>,
    pub(crate) active_deadline: Option<u64>,
    pub(crate) priority: i32,
    pub(crate) max_workers: Option<u32>,
    /// Somebody deleted it; it stays until its finalizer is removed.
    pub(crate) deleted: bool,
    /// It is gone.
    pub(crate) removed: bool,
    pub(crate) phase: Option<ApiPhase>,
    /// Key of its proof.
    pub(crate) proof: Option<Arc<str>>,
}

/// How a write ended, as its writer sees it.
#[derive(Debug)]
pub(crate) enum WriteResult {
    Done(Box<ProofJob>),
    Conflict,
    /// Nobody knows whether it was carried out.
    Failed,
    Gone,
}

/// What happens at the server.
#[derive(Debug)]
pub(crate) enum Happening {
    WriteStatus {
        replica: usize,
        incarnation: u64,
        uid: Arc<str>,
        version: u64,
        phase: ApiPhase,
        proof: Option<Arc<str>>,
    },
    Finalize {
        replica: usize,
        incarnation: u64,
        uid: Arc<str>,
    },
    ShowAgain {
        replica: usize,
        uid: Arc<str>,
    },
    /// Watches are opened again and show everything.
    Relist,
}

/// The server.
#[derive(Debug, Default)]
pub(crate) struct Api {
    pub(crate) jobs: BTreeMap<Arc<str>, ProofJob>,
    version: u64,
    pub(crate) away_until: u64,
    pub(crate) lease: Lease,
}

/// The hint at who leads.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    /// Replica and its process.
    pub(crate) holder: Option<(usize, u64)>,
    pub(crate) renewed_at: u64,
}

impl World {
    pub(crate) fn user_wants(&mut self, index: usize, what: Wish) {
        let uid = self.jobs[index].uid.clone();
        if self.now < self.api.away_until {
            // Users try again.
            return self.after(2_000, Any::User { job: index, what });
        }
        note!(self, index, 0, "a user wants of {uid}: {what:?}");
        if let Wish::Create = what {
            if self.api.jobs.contains_key(&uid) {
                return;
            }
            self.put_sources(&uid);
            self.api.jobs.insert(
                uid.clone(),
                ProofJob {
                    uid: uid.clone(),
                    index,
                    version: 0,
                    cancel: false,
                    suspend: false,
                    deadline: None,
                    active_deadline: None,
                    priority: 0,
                    max_workers: None,
                    deleted: false,
                    removed: false,
                    phase: None,
                    proof: None,
                },
            );
            return self.job_written(&uid);
        }
        let (now, ledger) = (self.now, &mut self.ledger);
        let Some(job) = self.api.jobs.get_mut(&uid) else {
            return;
        };
        match what {
            Wish::Create => {}
            Wish::Cancel => job.cancel = true,
            Wish::Suspend(suspend) => job.suspend = suspend,
            Wish::Deadline(at) => job.deadline = Some(at),
            Wish::ActiveDeadline(span) => job.active_deadline = Some(span),
            Wish::Priority(priority) => job.priority = priority,
            Wish::MaxWorkers(workers) => job.max_workers = workers,
            Wish::Delete => job.deleted = true,
        }
        ledger.wished(&uid, what, now);
        self.job_written(&uid);
    }

    /// A job was written: it has another version, and the watches will show it.
    fn job_written(&mut self, uid: &Arc<str>) {
        self.api.version += 1;
        let version = self.api.version;
        let Some(job) = self.api.jobs.get_mut(uid) else {
            return;
        };
        job.version = version;
        let job = job.clone();
        for replica in 0..self.replicas.len() {
            let delay = if self.random.chance(100) { 2_000 } else { 50 };
            let after = self.random.between(1, delay);
            self.for_replica(replica, after, replica::Happening::Watched(Box::new(job.clone())));
        }
    }

    /// A process begins to watch: it is shown everything that there is.
    pub(crate) fn show_all_jobs(&mut self, replica: usize) {
        let jobs: Vec<ProofJob> = self.api.jobs.values().cloned().collect();
        let wait = self.api.away_until.saturating_sub(self.now);
        for job in jobs {
            let after = wait + self.random.between(1, 500);
            self.for_replica(replica, after, replica::Happening::Watched(Box::new(job)));
        }
    }

    pub(crate) fn api_write_status(
        &mut self,
        replica: usize,
        uid: &Arc<str>,
        version: u64,
        phase: ApiPhase,
        proof: Option<Arc<str>>,
    ) {
        let after = self.random.between(1, 50);
        let incarnation = self.replicas[replica].incarnation;
        let uid = uid.clone();
        self.after(
            after,
            Any::Api(Happening::WriteStatus {
                replica,
                incarnation,
                uid,
                version,
                phase,
                proof,
            }),
        );
    }

    pub(crate) fn api_finalize(&mut self, replica: usize, uid: &Arc<str>) {
        let after = self.random.between(1, 50);
        let incarnation = self.replicas[replica].incarnation;
        let uid = uid.clone();
        self.after(
            after,
            Any::Api(Happening::Finalize {
                replica,
                incarnation,
                uid,
            }),
        );
    }

    pub(crate) fn api_does(&mut self, what: Happening) {
        match what {
            Happening::WriteStatus {
                replica,
                incarnation,
                uid,
                version,
                phase,
                proof,
            } => {
                let result = self.write_status(&uid, version, phase, proof.as_ref());
                let after = self.random.between(1, 50);
                let what = replica::Happening::Written { uid, result };
                self.for_incarnation(replica, incarnation, after, what);
            }
            Happening::Finalize {
                replica,
                incarnation,
                uid,
            } => self.finalize(replica, incarnation, &uid),
            Happening::ShowAgain { replica, uid } => self.show_again(replica, &uid),
            Happening::Relist => {
                let jobs: Vec<ProofJob> = self.api.jobs.values().cloned().collect();
                for replica in 0..self.replicas.len() {
                    for job in &jobs {
                        let what = replica::Happening::Watched(Box::new(job.clone()));
                        self.for_replica(replica, 1, what);
                    }
                }
            }
        }
    }

    fn api_fails(&mut self) -> bool {
        let chance = self.faults.api_error;
        self.now < self.api.away_until || self.random.chance(chance)
    }

    fn write_status(
        &mut self,
        uid: &Arc<str>,
        version: u64,
        phase: ApiPhase,
        proof: Option<&Arc<str>>,
    ) -> WriteResult {
        if self.api_fails() {
            return WriteResult::Failed;
        }
        let conflict = self.faults.api_conflict;
        if self.random.chance(conflict) {
            // Somebody else wrote an annotation meanwhile.
            self.job_written(uid);
        }
        let Some(job) = self.api.jobs.get(uid).filter(|job| !job.removed) else {
            return WriteResult::Gone;
        };
        if job.version != version {
            return WriteResult::Conflict;
        }
        self.check_status(uid, &phase, proof);
        note!(self, version, 0, "the status of {uid} is {phase:?}");
        if let Some(job) = self.api.jobs.get_mut(uid) {
            job.phase = Some(phase);
            job.proof = proof.cloned();
        }
        self.job_written(uid);
        let lost = self.faults.api_error;
        if self.random.chance(lost) {
            return WriteResult::Failed;
        }
        let job = self.api.jobs[uid].clone();
        WriteResult::Done(Box::new(job))
    }

    fn finalize(&mut self, replica: usize, incarnation: u64, uid: &Arc<str>) {
        if self.api_fails() {
            let after = self.random.between(500, 2_000);
            let what = replica::Happening::Reconcile { uid: uid.clone() };
            return self.for_incarnation(replica, incarnation, after, what);
        }
        let Some(job) = self.api.jobs.get_mut(uid).filter(|job| !job.removed) else {
            return;
        };
        job.removed = true;
        note!(self, replica, 0, "{uid} is gone");
        self.job_written(uid);
    }

    pub(crate) fn restart_api(&mut self, away: u64) {
        note!(self, away, 0, "the API server is away for {away} ms");
        self.api.away_until = self.now + away;
        self.after(away + 1, Any::Api(Happening::Relist));
    }

    pub(crate) fn heal_api(&mut self) {
        self.api.away_until = self.now;
        self.after(1, Any::Api(Happening::Relist));
    }
}
