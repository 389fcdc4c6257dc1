//! Metrics of the Kubernetes side, all below `prover_coordinator_kubernetes_`, with bounded label values only.

use prover_runtime::prometheus::{
    Error, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

const PREFIX: &str = "prover_coordinator_kubernetes";

/// Handles to all metrics; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) status_writes: IntCounterVec,
    pub(crate) status_write_errors: IntCounterVec,
    pub(crate) events_dropped: IntCounter,
    pub(crate) event_errors: IntCounter,
    pub(crate) watch_errors: IntCounterVec,
    pub(crate) undecodable: IntCounter,
    pub(crate) refusals: IntCounterVec,
    pub(crate) admission_retries: IntCounterVec,
    pub(crate) collections_refused: IntCounterVec,
    pub(crate) jobs: IntGaugeVec,
    pub(crate) start_seconds: Histogram,
    pub(crate) leads: IntGauge,
    pub(crate) takeovers: IntCounterVec,
    pub(crate) lease_errors: IntCounterVec,
    pub(crate) pod_write_errors: IntCounter,
}

impl Metrics {
    /// Registers all of them.
    pub(crate) fn register(registry: &Registry) -> Result<Metrics, Error> {
        let options = |name: &str, help: &str| Opts::new(name, help).namespace(PREFIX);
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::with_opts(options(name, help))?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, Error>(counter)
        };
        let counters = |name: &str, help: &str, label: &str| {
            let counters = IntCounterVec::new(options(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, Error>(counters)
        };
        let jobs = IntGaugeVec::new(
            options("jobs", "ProofJobs of this cluster by what is done about them."),
            &["stage"],
        )?;
        registry.register(Box::new(jobs.clone()))?;
        let leads = IntGauge::with_opts(options("leads", "1 while this replica leads."))?;
        registry.register(Box::new(leads.clone()))?;
        let buckets = vec![
            0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
        ];
        let start_seconds = Histogram::with_opts(
            HistogramOpts::new(
                "first_task_seconds",
                "From the first sight of a ProofJob to its first task on a worker.",
            )
            .namespace(PREFIX)
            .buckets(buckets),
        )?;
        registry.register(Box::new(start_seconds.clone()))?;
        Ok(Metrics {
            status_writes: counters(
                "status_writes_total",
                "Statuses sent to the API server.",
                "reason",
            )?,
            status_write_errors: counters(
                "status_write_errors_total",
                "Statuses that the API server did not take.",
                "category",
            )?,
            events_dropped: counter(
                "events_dropped_total",
                "Events that were not sent since too many waited.",
            )?,
            event_errors: counter("event_errors_total", "Events that the API server did not take.")?,
            watch_errors: counters(
                "watch_errors_total",
                "Watches that broke and began again.",
                "resource",
            )?,
            undecodable: counter(
                "undecodable_objects_total",
                "ProofJobs that can't be read and are passed over.",
            )?,
            refusals: counters("refusals_total", "ProofJobs that were not accepted.", "reason")?,
            collections_refused: counters(
                "collections_refused_total",
                "Collections of artifacts that the coordinator put off, and that are tried again.",
                "category",
            )?,
            admission_retries: counters(
                "admission_retries_total",
                "Admissions that failed and are tried again.",
                "category",
            )?,
            leads,
            takeovers: counters(
                "takeovers_total",
                "Times that this replica took the lead, by why.",
                "cause",
            )?,
            lease_errors: counters(
                "lease_errors_total",
                "Looks at the Lease, and writes of it, that were not answered.",
                "category",
            )?,
            pod_write_errors: counter(
                "pod_write_errors_total",
                "Writes of what this replica is at its own pod that were not answered.",
            )?,
            jobs,
            start_seconds,
        })
    }
}
