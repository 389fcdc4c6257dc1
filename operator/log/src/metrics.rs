//! What a log did, and what its requests cost. Does not export metrics: the process that owns the registry reads them.

use std::time::Duration;

/// Price of 1,000 PUT, COPY, POST or LIST requests in US dollars: Amazon S3 Standard, us-east-1,
/// <https://aws.amazon.com/s3/pricing/>, section "Requests & data retrievals".
pub const PUT_DOLLARS_PER_1000: f64 = 0.005;
/// Price of 1,000 GET, SELECT and all other requests in US dollars, same source. DELETE requests are free.
pub const GET_DOLLARS_PER_1000: f64 = 0.0004;

/// Requests by kind, tries included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(
    missing_docs,
    reason = "each counts the requests of the kind of the same name"
)]
pub struct Requests {
    pub put: u64,
    pub get: u64,
    pub list: u64,
    pub delete: u64,
}

impl Requests {
    /// What they cost, in US dollars.
    pub fn dollars(&self) -> f64 {
        let put = (self.put + self.list) as f64 * PUT_DOLLARS_PER_1000;
        let get = self.get as f64 * GET_DOLLARS_PER_1000;
        (put + get) / 1_000.0
    }
}

/// What so many requests in this time cost, for an hour of the same, in US dollars. Zero for no time.
pub fn dollars_per_hour(requests: &Requests, during: Duration) -> f64 {
    if during.is_zero() {
        return 0.0;
    }
    requests.dollars() * 3_600.0 / during.as_secs_f64()
}

/// What one log did since it was opened. All of them only grow, except the queue.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Metrics {
    /// Requests by kind.
    pub requests: Requests,
    /// Requests that failed.
    pub failures: u64,
    /// Objects with records that were committed.
    pub commits: u64,
    /// Records in them.
    pub committed_records: u64,
    /// Bytes of these objects.
    pub committed_bytes: u64,
    /// Time from the first sending of an object to the knowledge that it is committed, all together.
    pub commit_time: Duration,
    /// The longest of these times.
    pub longest_commit: Duration,
    /// Appends refused since too much waited.
    pub refused_appends: u64,
    /// Bytes that wait for their commit now.
    pub queue_bytes: u64,
    /// Checkpoints completed.
    pub checkpoints: u64,
    /// Objects deleted below checkpoints.
    pub deleted: u64,
    /// Objects read in order to replay them.
    pub replayed_objects: u64,
    /// Times that reading had to start again at a newer checkpoint.
    pub restarts: u64,
    /// Times that another leader was found where this one wanted to write.
    pub fenced: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_of_twenty_commits_a_second_costs_thirty_six_cents() {
        let requests = Requests {
            put: 20 * 60,
            ..Requests::default()
        };
        let dollars = dollars_per_hour(&requests, Duration::from_secs(60));
        assert!((dollars - 0.36).abs() < 1e-9, "{dollars}");
    }

    #[test]
    fn each_kind_has_its_price_and_deletes_are_free() {
        let requests = Requests {
            put: 1_000,
            get: 1_000,
            list: 1_000,
            delete: 1_000,
        };
        let dollars = dollars_per_hour(&requests, Duration::from_secs(3_600));
        assert!((dollars - 0.0104).abs() < 1e-9, "{dollars}");
        assert_eq!(dollars_per_hour(&requests, Duration::ZERO), 0.0);
    }
}
