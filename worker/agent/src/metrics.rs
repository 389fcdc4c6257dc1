//! What the agent measures. Label values come from fixed, small sets.

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    exponential_buckets,
};

/// All metrics of one agent. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) attempts: IntCounterVec,
    pub(crate) attempts_held: IntGauge,
    pub(crate) speculative_attempts: IntCounter,
    pub(crate) connected: IntGauge,
    pub(crate) sessions_ended: IntCounterVec,
    pub(crate) children_started: IntCounterVec,
    pub(crate) children_ended: IntCounterVec,
    pub(crate) device_usable: IntGaugeVec,
    pub(crate) device_busy: IntCounterVec,
    pub(crate) fetch_seconds: Histogram,
    pub(crate) upload_seconds: Histogram,
    pub(crate) fetched_bytes: IntCounter,
    pub(crate) uploaded_bytes: IntCounter,
    pub(crate) pending_calls: IntGauge,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        // 5 ms to 3 min: from a small receipt in a folder to a large program over a slow network.
        let buckets = || exponential_buckets(0.005, 2.0, 16);
        let metrics = Self {
            attempts: IntCounterVec::new(
                Opts::new("prover_agent_attempts_total", "Attempts that ended, by how."),
                &["outcome"],
            )?,
            attempts_held: IntGauge::new("prover_agent_attempts_held", "Attempts that the agent holds now.")?,
            speculative_attempts: IntCounter::new(
                "prover_agent_speculative_attempts_total",
                "Attempts that this worker was given beside others that took too long.",
            )?,
            connected: IntGauge::new(
                "prover_agent_connected",
                "1 while a coordinator has welcomed this worker.",
            )?,
            sessions_ended: IntCounterVec::new(
                Opts::new(
                    "prover_agent_sessions_ended_total",
                    "Streams to the coordinator that ended, by why.",
                ),
                &["category"],
            )?,
            children_started: IntCounterVec::new(
                Opts::new(
                    "prover_agent_children_started_total",
                    "Backend processes that became ready.",
                ),
                &["device"],
            )?,
            children_ended: IntCounterVec::new(
                Opts::new(
                    "prover_agent_children_ended_total",
                    "Backend processes that ended, by why.",
                ),
                &["device", "reason"],
            )?,
            device_usable: IntGaugeVec::new(
                Opts::new("prover_agent_device_usable", "1 while the device takes attempts."),
                &["device"],
            )?,
            device_busy: IntCounterVec::new(
                Opts::new(
                    "prover_agent_device_busy_milliseconds_total",
                    "Time during which at least one attempt ran on the device.",
                ),
                &["device"],
            )?,
            fetch_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "prover_agent_fetch_seconds",
                    "Time to fetch all inputs of an attempt.",
                )
                .buckets(buckets()?),
            )?,
            upload_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "prover_agent_upload_seconds",
                    "Time to store all outputs of an attempt.",
                )
                .buckets(buckets()?),
            )?,
            fetched_bytes: IntCounter::new(
                "prover_agent_fetched_bytes_total",
                "Bytes fetched from the store.",
            )?,
            uploaded_bytes: IntCounter::new(
                "prover_agent_uploaded_bytes_total",
                "Bytes put into the store.",
            )?,
            pending_calls: IntGauge::new(
                "prover_agent_pending_calls",
                "Calls of attempts that wait for the coordinator.",
            )?,
        };
        metrics.add_to(registry)?;
        Ok(metrics)
    }

    fn add_to(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.attempts.clone()))?;
        registry.register(Box::new(self.attempts_held.clone()))?;
        registry.register(Box::new(self.speculative_attempts.clone()))?;
        registry.register(Box::new(self.connected.clone()))?;
        registry.register(Box::new(self.sessions_ended.clone()))?;
        registry.register(Box::new(self.children_started.clone()))?;
        registry.register(Box::new(self.children_ended.clone()))?;
        registry.register(Box::new(self.device_usable.clone()))?;
        registry.register(Box::new(self.device_busy.clone()))?;
        registry.register(Box::new(self.fetch_seconds.clone()))?;
        registry.register(Box::new(self.upload_seconds.clone()))?;
        registry.register(Box::new(self.fetched_bytes.clone()))?;
        registry.register(Box::new(self.uploaded_bytes.clone()))?;
        registry.register(Box::new(self.pending_calls.clone()))
    }
}
