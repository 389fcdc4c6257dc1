//! TokenReview: asking the API server about a token. Only where it gives out no keys, and bounded in every way.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use prometheus::{IntCounterVec, Opts, Registry};
use prover_artifacts::Sha256;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Answers that are kept; the oldest goes first.
const ANSWERS: usize = 8_192;
/// How long an answer counts.
const ANSWER_AGE_SECONDS: u64 = 120;
/// Calls under way; further ones wait.
const CALLS: usize = 8;
/// Longest wait for a place and an answer.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// How long nothing is asked after the API server did not answer.
const PAUSE: Duration = Duration::from_secs(5);

/// There is no answer.
#[derive(Debug)]
pub(super) struct ReviewError {
    pub(super) problem: String,
}

#[derive(Default)]
struct Answers {
    /// Whether the token is genuine, and until when that counts, by the token's hash.
    known: BTreeMap<[u8; 32], (bool, u64)>,
    order: VecDeque<[u8; 32]>,
    paused_until: Option<Instant>,
}

/// Asks about tokens.
pub(super) struct Reviewer {
    client: Client,
    answers: Mutex<Answers>,
    places: Semaphore,
    reviews: IntCounterVec,
}

impl Reviewer {
    pub(super) fn new(client: Client, registry: &Registry) -> Result<Reviewer, prometheus::Error> {
        let reviews = IntCounterVec::new(
            Opts::new(
                "token_reviews_total",
                "Times that the API server was asked about a token, by outcome.",
            )
            .namespace("prover_coordinator"),
            &["outcome"],
        )?;
        registry.register(Box::new(reviews.clone()))?;
        Ok(Reviewer {
            client,
            answers: Mutex::default(),
            places: Semaphore::new(CALLS),
            reviews,
        })
    }

    /// Whether the API server calls the token genuine and made out to the audience. `expires` is what the token
    /// says of itself; both times are in seconds since the Unix epoch.
    pub(super) async fn review(
        &self,
        token: &str,
        audience: &str,
        expires: u64,
        now: u64,
    ) -> Result<bool, ReviewError> {
        let hash = *Sha256::of(token.as_bytes()).as_bytes();
        if let Some(answer) = self.known(&hash, now)? {
            return Ok(answer);
        }
        let asked = tokio::time::timeout(CALL_LIMIT, self.ask(token, audience)).await;
        let outcome = match &asked {
            Ok(Ok(true)) => "genuine",
            Ok(Ok(false)) => "refused",
            Ok(Err(_)) => "failed",
            Err(_) => "timeout",
        };
        self.reviews.with_label_values(&[outcome]).inc();
        let problem = match asked {
            Ok(Ok(genuine)) => {
                self.remember(hash, genuine, expires.min(now.saturating_add(ANSWER_AGE_SECONDS)));
                return Ok(genuine);
            }
            Ok(Err(error)) => format!("the API server did not judge the token: {error}"),
            Err(_) => "the API server did not judge the token in time".to_owned(),
        };
        self.lock().paused_until = Some(Instant::now() + PAUSE);
        Err(ReviewError { problem })
    }

    fn known(&self, hash: &[u8; 32], now: u64) -> Result<Option<bool>, ReviewError> {
        let answers = self.lock();
        match answers.known.get(hash) {
            Some((answer, until)) if now < *until => return Ok(Some(*answer)),
            _ => {}
        }
        if answers.paused_until.is_some_and(|until| Instant::now() < until) {
            self.reviews.with_label_values(&["paused"]).inc();
            let problem = "the API server did not answer a moment ago".to_owned();
            return Err(ReviewError { problem });
        }
        Ok(None)
    }

    fn remember(&self, hash: [u8; 32], genuine: bool, until: u64) {
        let mut answers = self.lock();
        if answers.known.insert(hash, (genuine, until)).is_none() {
            answers.order.push_back(hash);
        }
        if answers.order.len() > ANSWERS
            && let Some(oldest) = answers.order.pop_front()
        {
            answers.known.remove(&oldest);
        }
    }

    async fn ask(&self, token: &str, audience: &str) -> Result<bool, kube::Error> {
        // The semaphore is never closed.
        let _place = self.places.acquire().await.ok();
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![audience.to_owned()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let answer = Api::<TokenReview>::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await?;
        let Some(status) = answer.status else {
            return Ok(false);
        };
        // An API server that knows no audiences answers without them: that is no yes.
        let made_out = status.audiences.iter().flatten().any(|found| found == audience);
        Ok(status.authenticated.unwrap_or(false) && made_out)
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
