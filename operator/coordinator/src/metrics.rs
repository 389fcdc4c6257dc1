//! The coordinator's metrics, all below `prover_coordinator_`, with bounded label values only.

mod log;

use prover_core::{Action, ActionCacheView};
use prover_runtime::prometheus::{
    Counter, Error, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

pub(crate) use log::LogMetrics;

use crate::role::Role;
use crate::view::{ClassDepth, ClusterView};

const PREFIX: &str = "prover_coordinator";

/// Handles to all metrics; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) events: IntCounter,
    /// In the order of [`ACTIONS`].
    actions: [IntCounter; ACTIONS.len()],
    pub(crate) assignments: IntCounter,
    pub(crate) speculative: IntCounter,
    pub(crate) completions_accepted: IntCounter,
    pub(crate) completions_discarded: IntCounter,
    pub(crate) attempts_failed: IntCounterVec,
    pub(crate) jobs_admitted: IntCounter,
    pub(crate) jobs_refused: IntCounterVec,
    pub(crate) jobs_finished: IntCounterVec,
    pub(crate) tasks_again: IntCounterVec,
    cache_entries: IntGaugeVec,
    cache_bytes: IntGauge,
    cache_evicted: IntCounter,
    pub(crate) calls_refused: IntCounterVec,
    pub(crate) deletes: IntCounterVec,
    pub(crate) acknowledgements: IntCounter,
    pub(crate) slow_workers: IntCounter,
    pub(crate) undelivered: IntCounter,
    pub(crate) device_seconds: Counter,
    sessions_refused: IntCounterVec,
    messages_refused: IntCounterVec,
    workers: IntGaugeVec,
    jobs: IntGaugeVec,
    queue_tasks: IntGaugeVec,
    queue_device_seconds: GaugeVec,
    pub(crate) waiting_for_backend: IntGauge,
    pub(crate) waiting_for_log: IntGauge,
    pub(crate) refused_without_log: IntCounterVec,
    pub(crate) log: LogMetrics,
    pub(crate) log_records: IntCounter,
    pub(crate) log_backlog: IntGauge,
    pub(crate) log_errors: IntCounterVec,
    pub(crate) role: IntGaugeVec,
}

/// What the scheduling core may ask for. Counted several times per task, so that no label is looked up for it.
const ACTIONS: [&str; 14] = [
    "assign",
    "recall",
    "stop",
    "completion_judged",
    "answer",
    "task_result",
    "channel_message",
    "job_answered",
    "job_changed",
    "task_changed",
    "worker_empty",
    "worker_refused",
    "delete_artifact",
    "record",
];

/// Place of an action in [`ACTIONS`].
fn place(action: &Action) -> usize {
    match action {
        Action::Assign(_) => 0,
        Action::Recall { .. } => 1,
        Action::Stop { .. } => 2,
        Action::CompletionJudged { .. } => 3,
        Action::Answer { .. } => 4,
        Action::TaskResult { .. } => 5,
        Action::ChannelMessage { .. } => 6,
        Action::JobAnswered { .. } => 7,
        Action::JobChanged { .. } => 8,
        Action::TaskChanged { .. } => 9,
        Action::WorkerEmpty { .. } => 10,
        Action::WorkerRefused { .. } => 11,
        Action::DeleteArtifact { .. } => 12,
        Action::Record(_) => 13,
    }
}

struct Registrar<'a>(&'a Registry);

impl Registrar<'_> {
    fn options(name: &str, help: &str) -> Opts {
        Opts::new(name, help).namespace(PREFIX)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        let counter = IntCounter::with_opts(Self::options(name, help))?;
        self.0.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    fn amount(&self, name: &str, help: &str) -> Result<Counter, Error> {
        let counter = Counter::with_opts(Self::options(name, help))?;
        self.0.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, Error> {
        let gauge = IntGauge::with_opts(Self::options(name, help))?;
        self.0.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> Result<IntCounterVec, Error> {
        let counters = IntCounterVec::new(Self::options(name, help), &[label])?;
        self.0.register(Box::new(counters.clone()))?;
        Ok(counters)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, Error> {
        let gauges = IntGaugeVec::new(Self::options(name, help), labels)?;
        self.0.register(Box::new(gauges.clone()))?;
        Ok(gauges)
    }
}

impl Metrics {
    /// Registers all of them, once per registry.
    ///
    /// # Errors
    /// One of them is registered already.
    pub fn register(registry: &Registry) -> Result<Metrics, Error> {
        let r = Registrar(registry);
        let device_seconds = r.amount(
            "device_seconds_total",
            "Time on devices of all judged attempts, as backends measured it.",
        )?;
        let queue_device_seconds = GaugeVec::new(
            Registrar::options(
                "queue_device_seconds",
                "Estimated device-seconds of work, by device class and state.",
            ),
            &["device_class", "state"],
        )?;
        registry.register(Box::new(queue_device_seconds.clone()))?;
        let waiting_for_backend = IntGauge::with_opts(Registrar::options(
            "jobs_waiting_for_backend",
            "Jobs whose proof system no connected worker offers.",
        ))?;
        registry.register(Box::new(waiting_for_backend.clone()))?;
        let waiting_for_log = r.gauge(
            "waiting_for_log",
            "Acknowledgements, answers, deletes and ends of jobs that wait until the log has what they promise.",
        )?;
        let log_backlog = r.gauge(
            "log_backlog_records",
            "Records that the log's queue has no room for; they wait in memory.",
        )?;
        let actions = r.counters(
            "actions_total",
            "Actions that the scheduling core has asked for, by kind.",
            "kind",
        )?;
        let completions = r.counters(
            "completions_total",
            "Completions, by how they were judged.",
            "judged",
        )?;
        Ok(Metrics {
            waiting_for_log,
            log_backlog,
            refused_without_log: r.counters(
                "refused_without_log_total",
                "Jobs and submissions of tasks that were refused because the log could not be written, by kind.",
                "what",
            )?,
            log: LogMetrics::register(&r)?,
            log_records: r.counter("log_records_total", "Records that were given to the log.")?,
            log_errors: r.counters(
                "log_errors_total",
                "Errors of following, taking over and writing the log, by reason.",
                "reason",
            )?,
            role: r.gauges("role", "1 for what this coordinator is, 0 for the others.", &["role"])?,
            events: r.counter("events_total", "Events that the scheduling core has applied.")?,
            actions: ACTIONS.map(|kind| actions.with_label_values(&[kind])),
            assignments: r.counter("assignments_total", "Attempts that were sent to workers.")?,
            speculative: r.counter(
                "speculative_attempts_total",
                "Second attempts that were sent to workers beside others that took too long.",
            )?,
            completions_accepted: completions.with_label_values(&["accepted"]),
            completions_discarded: completions.with_label_values(&["discarded"]),
            attempts_failed: r.counters(
                "attempts_failed_total",
                "Attempts that ended without a result, by class of failure.",
                "class",
            )?,
            jobs_admitted: r.counter("jobs_admitted_total", "Jobs that were taken.")?,
            jobs_refused: r.counters(
                "jobs_refused_total",
                "Jobs that were not taken, by reason.",
                "reason",
            )?,
            jobs_finished: r.counters(
                "jobs_finished_total",
                "Jobs that became terminal, by phase.",
                "phase",
            )?,
            tasks_again: r.counters(
                "results_not_reused_total",
                "Results that a job's last plan could not take over from the plans before, by reason: regrouped (it asked \
                 for others), evicted (they had left the action cache), replanned (smaller segments).",
                "reason",
            )?,
            cache_entries: r.gauges(
                "action_cache_entries",
                "Entries of the action cache: those that go with their job, and those that outlive it.",
                &["kept"],
            )?,
            cache_bytes: r.gauge(
                "action_cache_lasting_bytes",
                "Bytes of keys and results of the entries that outlive their jobs.",
            )?,
            cache_evicted: r.counter(
                "action_cache_evicted_total",
                "Entries of the action cache that made room for others.",
            )?,
            calls_refused: r.counters(
                "calls_refused_total",
                "Calls of attempts that were refused, by kind.",
                "kind",
            )?,
            deletes: r.counters("deletes_total", "Deletions of artifacts, by outcome.", "outcome")?,
            acknowledgements: r.counter(
                "acknowledgements_total",
                "Completions that were acknowledged to workers.",
            )?,
            slow_workers: r.counter(
                "slow_workers_total",
                "Workers that were disconnected because their queue of messages was full.",
            )?,
            undelivered: r.counter(
                "undelivered_total",
                "Messages for workers whose stream was not open.",
            )?,
            device_seconds,
            sessions_refused: r.counters(
                "sessions_refused_total",
                "Streams that were refused, by reason.",
                "reason",
            )?,
            messages_refused: r.counters(
                "messages_refused_total",
                "Messages that were refused, by reason.",
                "reason",
            )?,
            workers: r.gauges("workers", "Workers that are not gone, by state.", &["state"])?,
            jobs: r.gauges("jobs", "Jobs that are not finished, by state.", &["state"])?,
            queue_tasks: r.gauges(
                "queue_tasks",
                "Tasks, by device class and state.",
                &["device_class", "state"],
            )?,
            queue_device_seconds,
            waiting_for_backend,
        })
    }

    pub(crate) fn show_role(&self, role: Role) {
        let shown = match role {
            Role::Following { .. } => "following",
            Role::Leading { .. } => "leading",
            Role::Fenced => "fenced",
        };
        for known in ["following", "leading", "fenced"] {
            self.role
                .with_label_values(&[known])
                .set(i64::from(known == shown));
        }
    }

    pub(crate) fn action(&self, action: &Action) {
        self.actions[place(action)].inc();
    }

    pub(crate) fn session_refused(&self, reason: &'static str) {
        self.sessions_refused.with_label_values(&[reason]).inc();
    }

    pub(crate) fn message_refused(&self, reason: &'static str) {
        self.messages_refused.with_label_values(&[reason]).inc();
    }

    /// Sets what is told of the action cache.
    pub(crate) fn show_cache(&self, cache: ActionCacheView) {
        let set = |kept: &str, entries: usize| {
            let entries = i64::try_from(entries).unwrap_or(i64::MAX);
            self.cache_entries.with_label_values(&[kept]).set(entries);
        };
        set("with_job", cache.entries - cache.lasting);
        set("lasting", cache.lasting);
        self.cache_bytes
            .set(i64::try_from(cache.lasting_bytes).unwrap_or(i64::MAX));
        let news = cache.evicted.saturating_sub(self.cache_evicted.get());
        self.cache_evicted.inc_by(news);
    }

    /// Sets the gauges from what is shown.
    pub(crate) fn show(&self, view: &ClusterView) {
        let connected = view.workers.iter().filter(|worker| worker.connected).count();
        let draining = view.workers.iter().filter(|worker| worker.draining).count();
        let disconnected = view.workers.len() - connected;
        for (state, count) in [
            ("connected", connected),
            ("disconnected", disconnected),
            ("draining", draining),
        ] {
            self.workers
                .with_label_values(&[state])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let depth = view.queue_depth;
        for (state, count) in [("queued", depth.queued_jobs), ("running", depth.running_jobs)] {
            self.jobs
                .with_label_values(&[state])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.show_class("cpu", &depth.cpu);
        self.show_class("gpu", &depth.gpu);
    }

    fn show_class(&self, class: &str, depth: &ClassDepth) {
        let states = [
            ("waiting", depth.waiting_tasks, depth.waiting_device_seconds),
            ("running", depth.running_tasks, depth.running_device_seconds),
        ];
        for (state, tasks, seconds) in states {
            self.queue_tasks
                .with_label_values(&[class, state])
                .set(i64::try_from(tasks).unwrap_or(i64::MAX));
            self.queue_device_seconds
                .with_label_values(&[class, state])
                .set(seconds);
        }
    }
}
