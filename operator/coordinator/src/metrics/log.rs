//! What the log does and what its requests cost, as metrics: the log itself exports none.

use std::sync::{Arc, Mutex, PoisonError};

use prover_log::{Metrics as Done, Requests};
use prover_runtime::prometheus::{Counter, Error, IntCounter, IntCounterVec, IntGauge};

use super::Registrar;

/// Counters of what a process has done to its log, over all epochs in which it led or followed.
#[derive(Clone, Debug)]
pub(crate) struct LogMetrics {
    requests: IntCounterVec,
    dollars: Counter,
    failures: IntCounter,
    commits: IntCounter,
    commit_seconds: Counter,
    committed_bytes: IntCounter,
    checkpoints: IntCounter,
    queue_bytes: IntGauge,
    /// What was counted of the log that is open now.
    counted: Arc<Mutex<Done>>,
}

impl LogMetrics {
    pub(super) fn register(r: &Registrar<'_>) -> Result<LogMetrics, Error> {
        Ok(LogMetrics {
            requests: r.counters(
                "log_requests_total",
                "Requests to the store for the log, tries included, by kind.",
                "kind",
            )?,
            dollars: r.amount(
                "log_request_dollars_total",
                "What these requests cost on Amazon S3 Standard in us-east-1, in US dollars; other stores may cost nothing.",
            )?,
            failures: r.counter("log_request_failures_total", "Requests for the log that failed.")?,
            commits: r.counter("log_commits_total", "Objects with records that were committed.")?,
            commit_seconds: r.amount(
                "log_commit_seconds_total",
                "Time from the first sending of these objects to the knowledge that they are committed.",
            )?,
            committed_bytes: r.counter("log_committed_bytes_total", "Bytes of these objects.")?,
            checkpoints: r.counter("log_checkpoints_total", "Checkpoints that were completed.")?,
            queue_bytes: r.gauge("log_queue_bytes", "Bytes that wait for their commit.")?,
            counted: Arc::default(),
        })
    }

    /// Shows what a log has done since it was opened.
    pub(crate) fn show(&self, done: Done) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if done.requests.list < counted.requests.list || done.requests.get < counted.requests.get {
            // It was opened again and counts from zero.
            *counted = Done::default();
        }
        let (now, before) = (&done.requests, &counted.requests);
        let new = Requests {
            put: now.put - before.put,
            get: now.get - before.get,
            list: now.list - before.list,
            delete: now.delete - before.delete,
        };
        for (kind, count) in [
            ("put", new.put),
            ("get", new.get),
            ("list", new.list),
            ("delete", new.delete),
        ] {
            self.requests.with_label_values(&[kind]).inc_by(count);
        }
        self.dollars.inc_by(new.dollars());
        self.failures.inc_by(done.failures - counted.failures);
        self.commits.inc_by(done.commits - counted.commits);
        let took = done.commit_time.saturating_sub(counted.commit_time);
        self.commit_seconds.inc_by(took.as_secs_f64());
        self.committed_bytes
            .inc_by(done.committed_bytes - counted.committed_bytes);
        self.checkpoints.inc_by(done.checkpoints - counted.checkpoints);
        self.queue_bytes
            .set(i64::try_from(done.queue_bytes).unwrap_or(i64::MAX));
        *counted = done;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prover_runtime::prometheus::Registry;

    use super::*;

    #[test]
    fn requests_and_their_price_are_counted_on_when_the_log_is_opened_again() {
        let shown = LogMetrics::register(&Registrar(&Registry::new())).unwrap();
        let done = |put, get| Done {
            requests: Requests {
                put,
                get,
                ..Requests::default()
            },
            commits: put,
            commit_time: Duration::from_millis(10 * put),
            ..Done::default()
        };
        for told in [done(1_000, 500), done(3_000, 500), done(2_000, 100)] {
            shown.show(told);
        }
        let count = |kind| shown.requests.with_label_values(&[kind]).get();
        assert_eq!((count("put"), count("get")), (5_000, 600));
        assert!(
            (shown.dollars.get() - 0.025_24).abs() < 1e-9,
            "{}",
            shown.dollars.get()
        );
        assert!((shown.commit_seconds.get() - 50.0).abs() < 1e-9);
    }
}
