//! What the operator counts of itself.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Seconds that a reconcile may take.
const RECONCILE_BUCKETS: [f64; 9] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 5.0, 20.0, 60.0];
/// Result of what went well.
const OK: &str = "ok";

/// Which controller a figure belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerName {
    /// ProverClusters.
    ProverCluster,
    /// ProofJobs.
    ProofJob,
    /// Replicas of worker groups.
    Scaling,
}

impl ControllerName {
    /// As label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ControllerName::ProverCluster => "prover_cluster",
            ControllerName::ProofJob => "proof_job",
            ControllerName::Scaling => "scaling",
        }
    }
}

/// The metrics of the operator.
#[derive(Clone, Debug)]
pub struct Metrics {
    reconciles: IntCounterVec,
    reconcile_seconds: HistogramVec,
    scale_decisions: IntCounterVec,
    job_decisions: IntCounterVec,
    certificate_steps: IntCounterVec,
    leader: IntGauge,
    streams: IntGauge,
    watch_errors: IntCounterVec,
    undecodable: IntGaugeVec,
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// One of the names is taken in this registry.
    pub fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let reconcile_seconds = HistogramVec::new(
            HistogramOpts::new("prover_operator_reconcile_seconds", "Time that reconciles took.")
                .buckets(RECONCILE_BUCKETS.to_vec()),
            &["controller"],
        )?;
        registry.register(Box::new(reconcile_seconds.clone()))?;
        let undecodable = IntGaugeVec::new(
            Opts::new(
                "prover_operator_undecodable_objects",
                "Objects that could not be read.",
            ),
            &["kind"],
        )?;
        registry.register(Box::new(undecodable.clone()))?;
        Ok(Metrics {
            reconciles: counter(
                "prover_operator_reconciles_total",
                "Reconciles by controller and result: ok, or the category of the error.",
                &["controller", "result"],
            )?,
            reconcile_seconds,
            scale_decisions: counter(
                "prover_operator_scale_decisions_total",
                "Decisions about the replicas of worker groups, by what was decided and why.",
                &["decision", "reason"],
            )?,
            job_decisions: counter(
                "prover_operator_job_writes_total",
                "Writes to ProofJobs by what was written.",
                &["write"],
            )?,
            certificate_steps: counter(
                "prover_operator_certificate_steps_total",
                "Steps in the life of authorities and certificates.",
                &["step"],
            )?,
            leader: gauge("prover_operator_leader", "1 on the replica that leads.")?,
            streams: gauge(
                "prover_operator_coordinator_streams",
                "Coordinators that are listened to.",
            )?,
            watch_errors: counter(
                "prover_operator_watch_errors_total",
                "Watches of the API server that broke, by kind of object.",
                &["kind"],
            )?,
            undecodable,
        })
    }

    /// A reconcile ended: `error` is the category of its error.
    pub fn reconciled(&self, controller: ControllerName, error: Option<&'static str>, took: Duration) {
        let controller = controller.as_str();
        self.reconciles
            .with_label_values(&[controller, error.unwrap_or(OK)])
            .inc();
        self.reconcile_seconds
            .with_label_values(&[controller])
            .observe(took.as_secs_f64());
    }

    /// Replicas were decided upon.
    pub fn scale_decided(&self, decision: &'static str, reason: &'static str) {
        self.scale_decisions.with_label_values(&[decision, reason]).inc();
    }

    /// A ProofJob was written to.
    pub fn job_written(&self, write: &'static str) {
        self.job_decisions.with_label_values(&[write]).inc();
    }

    /// An authority or a certificate took a step.
    pub fn certificate_step(&self, step: &'static str) {
        self.certificate_steps.with_label_values(&[step]).inc();
    }

    /// Whether this replica leads.
    pub fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// A coordinator is listened to from now on, or no more.
    pub fn stream_opened(&self, opened: bool) {
        self.streams.add(if opened { 1 } else { -1 });
    }

    /// A watch broke.
    pub fn watch_failed(&self, kind: &str) {
        self.watch_errors.with_label_values(&[kind]).inc();
    }

    /// So many objects of a kind can't be read.
    pub fn set_undecodable(&self, kind: &'static str, count: usize) {
        self.undecodable
            .with_label_values(&[kind])
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
