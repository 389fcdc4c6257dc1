//! The ProofJobs of a cluster: from what the API server tells to the coordinator, and back to their status.
//!
//! One task owns all of it and never waits for the API server or the store: admissions, writes and collections are
//! futures that it drives. Owns the life of each job on the API. Does not own scheduling (`prover-core`), the words of
//! a status ([`crate::status`]), nor when it is written ([`crate::write_plan`]).

mod admit;
mod collecting;
mod entry;
pub(crate) mod judge;
mod lead;
mod retained;
mod sightings;
mod slots;
mod views;
pub(crate) mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use kube::Client;
use prover_artifacts::ArtifactStore;
use prover_coordinator::{ClusterSources, CoordinatorHandle, TenantPolicy, Timestamp};
use prover_runtime::Clock;
use tokio::sync::{mpsc, watch as tokio_watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Rules, RulesWatch};
use crate::election::{Confirmed, Lead};
use crate::events::Teller;
use crate::metrics::Metrics;
use crate::writer::{JobName, Outcome, StatusWriter};
use admit::Admitted;
use collecting::Swept;
use entry::{Job, Stage};
use watch::{ClusterName, Sighting};

/// Admissions, and so sources on their way into the store, at once.
const PARALLEL_ADMISSIONS: usize = 32;
/// Jobs whose artifacts are collected at once.
const PARALLEL_SWEEPS: usize = 4;
/// Objects that wait between the watches and the jobs.
const SIGHTINGS: usize = 64;
/// Views that wait between the coordinator and the jobs.
const VIEWS: usize = 1_024;
/// Longest time that a shutdown waits for statuses to be written: the next leader writes what is left.
const FLUSH: Duration = Duration::from_secs(1);
/// Milliseconds until another look whether statuses may be written, while they may not.
const UNCONFIRMED_WAIT: u64 = 100;

/// What the jobs are made with.
pub(crate) struct Parts {
    pub(crate) client: Client,
    pub(crate) cluster: ClusterName,
    pub(crate) coordinator: Arc<CoordinatorHandle>,
    pub(crate) store: Arc<dyn ArtifactStore>,
    /// Put before a key it makes the URI of an artifact.
    pub(crate) store_uri: String,
    pub(crate) sources: Arc<dyn ClusterSources>,
    /// Bytes of the largest program, and of the largest input, where the ProverCluster does not say.
    pub(crate) source_bytes: (u64, u64),
    pub(crate) rules: RulesWatch,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
    pub(crate) teller: Teller,
    /// The lead, once this replica has it: until then nothing is written and nothing is given to the coordinator.
    pub(crate) lead: tokio_watch::Receiver<Option<Lead>>,
    /// Until when statuses may be written.
    pub(crate) confirmed: Confirmed,
}

/// All jobs of the cluster.
pub(crate) struct Jobs {
    parts: Parts,
    rules: Arc<Rules>,
    jobs: BTreeMap<JobName, Job>,
    /// Ended jobs whose objects are still there: an old sight of them must not begin them again.
    done: BTreeSet<JobName>,
    /// Ended jobs whose results lie in the store.
    retained: retained::Retained,
    writer: StatusWriter,
    /// Accepted jobs that wait for an admission, the most urgent first.
    backlog: BTreeSet<entry::Turn>,
    admissions: FuturesUnordered<BoxFuture<'static, Admitted>>,
    /// Jobs whose artifacts are to be collected.
    sweep_queue: BTreeSet<JobName>,
    sweeps: FuturesUnordered<BoxFuture<'static, Swept>>,
    timers: BTreeSet<(Timestamp, JobName)>,
    /// Accepted jobs that have not ended, by namespace.
    unfinished: HashMap<Arc<str>, usize>,
    unfinished_in_all: usize,
    /// Jobs that may run at once, in all and by namespace.
    slots: slots::Slots,
    /// Shares and bounds that the core was told, by namespace.
    tenants: BTreeMap<Arc<str>, TenantPolicy>,
    /// Fewer jobs are unfinished than before: refused ones may be taken.
    room: bool,
    /// The watch of each namespace.
    watches: BTreeMap<Arc<str>, NamespaceWatch>,
    sightings: (mpsc::Sender<Sighting>, mpsc::Receiver<Sighting>),
    views: (mpsc::Sender<JobName>, mpsc::Receiver<JobName>),
    synced: tokio_watch::Sender<bool>,
    /// This replica leads.
    leads: bool,
    /// Jobs that there were when the lead began and that the coordinator was not given yet; none once it has been told
    /// that this is over.
    inherited: Option<BTreeSet<JobName>>,
    /// Ended jobs that are being deleted and whose artifacts no leader has collected yet.
    uncollected: BTreeSet<JobName>,
}

struct NamespaceWatch {
    stop: CancellationToken,
    /// Its list was complete once.
    listed: bool,
}

impl Drop for NamespaceWatch {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Jobs {
    /// Nothing is watched until [`Jobs::run`]. The receiver tells whether all jobs that there were are known.
    pub(crate) fn new(parts: Parts) -> (Jobs, tokio_watch::Receiver<bool>) {
        let (synced, receiver) = tokio_watch::channel(false);
        let jobs = Jobs {
            rules: Arc::default(),
            jobs: BTreeMap::new(),
            done: BTreeSet::new(),
            retained: retained::Retained::default(),
            writer: StatusWriter::new(parts.client.clone(), parts.metrics.clone()),
            backlog: BTreeSet::new(),
            admissions: FuturesUnordered::new(),
            sweep_queue: BTreeSet::new(),
            sweeps: FuturesUnordered::new(),
            timers: BTreeSet::new(),
            unfinished: HashMap::new(),
            unfinished_in_all: 0,
            slots: slots::Slots::default(),
            tenants: BTreeMap::new(),
            room: false,
            watches: BTreeMap::new(),
            sightings: mpsc::channel(SIGHTINGS),
            views: mpsc::channel(VIEWS),
            synced,
            leads: false,
            inherited: None,
            uncollected: BTreeSet::new(),
            parts,
        };
        (jobs, receiver)
    }

    /// Looks after the jobs until it is stopped; then what is settled is still written.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        self.take_rules().await;
        loop {
            self.start_due().await;
            let wake = self.wake_at();
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.parts.rules.changed() => self.take_rules().await,
                () = lead_begins(&mut self.parts.lead), if !self.leads => self.begin_to_lead().await,
                Some(sighting) = self.sightings.1.recv() => self.sighted(sighting).await,
                Some(name) = self.views.1.recv() => self.viewed(&name).await,
                Some(admitted) = self.admissions.next() => self.admitted(admitted).await,
                Some(swept) = self.sweeps.next() => self.swept(swept),
                finished = self.writer.finished() => {
                    let now = self.now();
                    let (name, outcome) = self.writer.settle(finished, now);
                    self.written(&name, &outcome).await;
                }
                () = sleep_until(wake) => self.run_timers().await,
            }
        }
        if self.leads {
            self.flush().await;
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.parts.clock.now_milliseconds())
    }

    /// Everything that may begin without waiting.
    async fn start_due(&mut self) {
        if self.leads {
            self.use_room().await;
            self.start_admissions();
            self.start_sweeps();
            let now = self.now();
            if self.parts.confirmed.holds(now.0) {
                self.writer.start_due(now);
            }
            self.tell_synced().await;
        }
        let gauges = [
            ("known", self.jobs.len()),
            ("backlog", self.backlog.len()),
            ("admitting", self.admissions.len()),
            ("unfinished", self.unfinished_in_all),
            ("done", self.done.len()),
        ];
        for (stage, count) in gauges {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.parts.metrics.jobs.with_label_values(&[stage]).set(count);
        }
    }

    /// Asks refused jobs again where there is room for more.
    async fn use_room(&mut self) {
        if !std::mem::take(&mut self.room) {
            return;
        }
        self.grant_slots().await;
        let refused: Vec<JobName> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.waits_for_room())
            .map(|(name, job)| (job.mk_turn(name), name.clone()))
            .collect::<BTreeMap<_, _>>()
            .into_values()
            .collect();
        for name in refused {
            self.judge_again(&name);
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        if !self.leads {
            return None;
        }
        let timer = self.timers.first().map(|(at, _)| *at);
        let retention = self.retained.due(self.retention());
        let due = [timer, retention, self.writer.wake_at()]
            .into_iter()
            .flatten()
            .min()?;
        let now = self.now();
        let least = if self.parts.confirmed.holds(now.0) {
            1
        } else {
            UNCONFIRMED_WAIT
        };
        let wait = due.0.saturating_sub(now.0);
        Some(Instant::now() + Duration::from_millis(wait.max(least)))
    }

    async fn run_timers(&mut self) {
        let now = self.now();
        self.end_retentions(now);
        while let Some((at, name)) = self.timers.first().cloned() {
            if at > now {
                return;
            }
            self.timers.remove(&(at, name.clone()));
            if let Some(job) = self.jobs.get_mut(&name) {
                job.timer = None;
            }
            self.timer(&name, now).await;
        }
    }

    /// A job's next look at itself: the earlier one of two counts.
    fn set_timer(&mut self, name: &JobName, at: Timestamp) {
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        if job.timer.is_some_and(|present| present <= at) {
            return;
        }
        if let Some(present) = job.timer.replace(at) {
            self.timers.remove(&(present, name.clone()));
        }
        self.timers.insert((at, name.clone()));
    }

    async fn timer(&mut self, name: &JobName, now: Timestamp) {
        let Some(job) = self.jobs.get(name) else { return };
        match &job.stage {
            Stage::Retrying { at, .. } if *at <= now => self.judge_again(name),
            Stage::Unknown | Stage::Refused | Stage::Backlog | Stage::Retrying { .. } => {
                if job.policy.deadline.is_some_and(|deadline| deadline <= now) {
                    self.judge_again(name);
                } else {
                    self.set_deadline_timer(name);
                }
            }
            Stage::Taken { .. } => self.refresh(name, true).await,
            Stage::Collecting { .. } => {
                self.sweep_queue.insert(name.clone());
            }
            Stage::Admitting | Stage::Ended | Stage::Collected(_) => {}
        }
    }

    async fn take_rules(&mut self) {
        let Some(rules) = self.parts.rules.latest() else {
            return;
        };
        self.rules = rules;
        self.room = true;
        self.bound_sources();
        self.watch_namespaces();
        self.show_synced();
        if !self.leads {
            return;
        }
        self.tell_tenants().await;
        let undecided: Vec<JobName> = self
            .jobs
            .iter()
            .filter(|(_, job)| matches!(job.stage, Stage::Unknown | Stage::Refused | Stage::Backlog))
            .map(|(name, _)| name.clone())
            .collect();
        for name in undecided {
            self.judge_again(&name);
        }
    }

    /// Tells the coordinator how large sources may be.
    fn bound_sources(&self) {
        let (program, input) = self.parts.source_bytes;
        let cluster = self.rules.cluster.as_ref();
        let largest = cluster.and_then(|cluster| cluster.limits.max_source_size.as_ref()?.units());
        let (program, input) = largest.map_or((program, input), |largest| (program.min(largest), largest));
        self.parts.coordinator.set_source_limits(program, input);
    }

    /// Watches the allowed namespaces, and others for as long as jobs of them have not ended.
    fn watch_namespaces(&mut self) {
        let allowed = &self.rules.namespaces;
        let busy: BTreeSet<Arc<str>> = self.jobs.keys().map(|name| Arc::clone(&name.namespace)).collect();
        self.watches
            .retain(|namespace, _| allowed.contains(&**namespace) || busy.contains(namespace));
        for namespace in allowed {
            let namespace: Arc<str> = Arc::from(namespace.as_str());
            if self.watches.contains_key(&namespace) {
                continue;
            }
            let stop = CancellationToken::new();
            tokio::spawn(watch::follow(
                self.parts.client.clone(),
                Arc::clone(&namespace),
                self.parts.cluster.clone(),
                self.sightings.0.clone(),
                self.parts.metrics.clone(),
                stop.clone(),
            ));
            self.watches
                .insert(namespace, NamespaceWatch { stop, listed: false });
        }
    }

    fn show_synced(&self) {
        // A cluster whose rules are not known allows no namespace, so their absence must not look like peace.
        let synced = self.rules.cluster.is_some() && self.watches.values().all(|watch| watch.listed);
        self.synced
            .send_if_modified(|before| std::mem::replace(before, synced) != synced);
    }

    async fn written(&mut self, name: &JobName, outcome: &Outcome) {
        match outcome {
            Outcome::Written { ended: true } => self.end_written(name).await,
            Outcome::Gone => self.gone(name).await,
            Outcome::Written { ended: false } | Outcome::Failed => {}
        }
    }

    /// Writes what is settled before the process ends, for a bounded time.
    async fn flush(&mut self) {
        let flush = async {
            loop {
                let now = self.now();
                self.writer.start_all(now);
                if self.writer.unsettled() == 0 {
                    return;
                }
                let finished = self.writer.finished().await;
                let now = self.now();
                self.writer.settle(finished, now);
            }
        };
        if tokio::time::timeout(FLUSH, flush).await.is_err() {
            tracing::warn!("not all statuses could be written before the end");
        }
    }
}

/// Waits until this replica leads; for ever where it never does.
async fn lead_begins(lead: &mut tokio_watch::Receiver<Option<Lead>>) {
    if lead.wait_for(Option::is_some).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}
