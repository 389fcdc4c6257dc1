//! Which replica of a coordinator leads.
//!
//! Owns the Lease, when this replica takes over and steps down, and what it says of that: the label of its pod, an event,
//! the address that followers send workers to. Does not own the fence: that is the epoch in the log, so whatever happens
//! here, at most one replica commits anything.

mod client;
mod lease;
mod own_pod;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kube::Client;
use prover_coordinator::{CoordinatorHandle, Role, TakeOverError};
use prover_runtime::{Clock, Observation};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
pub(crate) use client::{Candidate, Confirmed, LeaseClient};
use lease::{Blind, BlindDecision, Decision, LOOK_PERIOD_MS, TakeReason};
pub(crate) use own_pod::OwnPod;

/// Longest wait for the leader's own word.
const ASK_LIMIT: Duration = Duration::from_millis(1_000);
/// Longest wait at the end until the pod says that it does not lead any more.
const TELL_LIMIT: Duration = Duration::from_millis(1_000);
/// Longest answer about a role in bytes.
const ROLE_BYTES: usize = 256;
/// What a leader answers at `/role`, before its epoch.
const LEADS: &str = "leads";
/// What a follower answers at `/role`.
const FOLLOWS: &str = "follows";

/// Why a replica takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// There was no leader before.
    First,
    /// The leader before gave the lead back.
    Released,
    /// The leader before did not renew its Lease.
    Expired,
    /// It had the Lease already: it led before it was started again.
    Again,
    /// The API server is away and the leader does not answer.
    Silent,
}

impl Cause {
    /// Label of metrics.
    fn as_str(self) -> &'static str {
        match self {
            Cause::First => "first",
            Cause::Released => "released",
            Cause::Expired => "expired",
            Cause::Again => "again",
            Cause::Silent => "silent",
        }
    }

    /// For people.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Cause::First => "there was none before",
            Cause::Released => "the one before gave the lead back",
            Cause::Expired => "the one before did not renew its Lease",
            Cause::Again => "it led before it was started again",
            Cause::Silent => "the API server is away and the one before does not answer",
        }
    }
}

/// A lead that began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lead {
    pub(crate) epoch: u64,
    pub(crate) cause: Cause,
    /// Pod of the leader before, if another one was.
    pub(crate) predecessor: Option<String>,
}

/// How the election ended for this replica.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It was stopped.
    Stopped,
    /// Another one leads.
    Fenced,
    /// It could not take over.
    Failed(TakeOverError),
}

/// This replica's part in the election.
pub(crate) struct Election {
    pub(crate) client: Client,
    pub(crate) lease: LeaseClient,
    pub(crate) coordinator: Arc<CoordinatorHandle>,
    pub(crate) pod: OwnPod,
    pub(crate) observation: Observation,
    pub(crate) confirmed: Confirmed,
    /// Told when the lead begins.
    pub(crate) leading: watch::Sender<Option<Lead>>,
    /// All objects are known: nothing is to be read before this replica can lead.
    pub(crate) synced: watch::Receiver<bool>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
}

/// How following ended.
enum Followed {
    TakeOver(Cause),
    Stopped,
    Fenced,
}

impl Election {
    /// Follows until it is time to lead, then leads until it is stopped or overtaken.
    pub(crate) async fn run(mut self, stop: &CancellationToken) -> Ended {
        self.observation.set_role(FOLLOWS);
        self.metrics.leads.set(0);
        let ended = match self.follow(stop).await {
            Followed::TakeOver(cause) => self.lead(cause, stop).await,
            Followed::Stopped => Ended::Stopped,
            Followed::Fenced => Ended::Fenced,
        };
        self.metrics.leads.set(0);
        self.observation.set_role(FOLLOWS);
        if self.leading.borrow().is_some() {
            self.pod.set_leads(false);
            // The process may end before the pod is told otherwise, and nobody looks for a leader that gave its Lease back.
            let candidate = self.lease.candidate();
            let telling = own_pod::demote(
                self.client.clone(),
                &candidate.namespace,
                &candidate.pod,
                self.metrics.clone(),
            );
            if tokio::time::timeout(TELL_LIMIT, telling).await.is_err() {
                tracing::warn!("the pod still says that it leads");
            }
        }
        // After the coordinator has stopped: whoever takes the Lease may begin at once.
        self.lease.release(&self.confirmed).await;
        ended
    }

    /// Whether everything is at hand that a leader needs.
    fn is_warm(&self, role: Role) -> bool {
        *self.synced.borrow() && !matches!(role, Role::Following { caught_up: false })
    }

    async fn follow(&mut self, stop: &CancellationToken) -> Followed {
        let mut roles = self.coordinator.role();
        let mut blind = Blind::default();
        loop {
            let role = *roles.borrow_and_update();
            if role == Role::Fenced {
                return Followed::Fenced;
            }
            let cause = match self.lease.look().await {
                Ok(decision) => {
                    blind = Blind::default();
                    self.tell_leader();
                    match decision {
                        Decision::Wait { .. } => None,
                        decision if !self.is_warm(role) => {
                            let objects = *self.synced.borrow();
                            tracing::info!(?decision, ?role, objects, "the lead waits until all is read");
                            None
                        }
                        decision => self.take(&decision).await,
                    }
                }
                Err(error) => {
                    tracing::info!(%error, "nobody can tell who has the Lease");
                    blind = self
                        .look_without_api_server(blind.unanswered(self.clock.now_milliseconds()))
                        .await;
                    let knows_leader = self.lease.leader().is_some();
                    let decision = blind.decide(knows_leader, self.clock.now_milliseconds());
                    (decision == BlindDecision::TakeOver && self.is_warm(role)).then_some(Cause::Silent)
                }
            };
            if let Some(cause) = cause {
                return Followed::TakeOver(cause);
            }
            tokio::select! {
                () = stop.cancelled() => return Followed::Stopped,
                () = tokio::time::sleep(Duration::from_millis(LOOK_PERIOD_MS)) => {}
                changed = roles.changed() => if changed.is_err() { return Followed::Fenced },
            }
        }
    }

    /// Tells the coordinator where to send workers.
    fn tell_leader(&self) {
        let address = self.lease.leader().and_then(|observed| observed.address.clone());
        self.coordinator.set_leader(address);
    }

    /// Takes the Lease, if nobody else is quicker.
    async fn take(&mut self, decision: &Decision) -> Option<Cause> {
        let cause = match decision {
            Decision::Wait { .. } => return None,
            Decision::Create => Cause::First,
            Decision::Renew => Cause::Again,
            Decision::Take(TakeReason::Released) => Cause::Released,
            Decision::Take(TakeReason::Expired) => Cause::Expired,
        };
        match self.lease.write(&self.confirmed).await {
            Ok(true) => Some(cause),
            Ok(false) => None,
            Err(error) => {
                tracing::warn!(%error, "the Lease could not be taken");
                None
            }
        }
    }

    /// Asks the leader itself, where it is time to.
    async fn look_without_api_server(&self, blind: Blind) -> Blind {
        let now_ms = self.clock.now_milliseconds();
        let probes = self.lease.leader().and_then(|leader| leader.probes.clone());
        let Some(probes) = probes.filter(|_| blind.decide(true, now_ms) == BlindDecision::Ask) else {
            return blind;
        };
        let answered = says_that_it_leads(&probes).await;
        if !answered {
            tracing::warn!(
                leader = probes,
                "the API server is away, and the leader does not answer"
            );
        }
        blind.asked(answered, self.clock.now_milliseconds())
    }

    async fn lead(&mut self, cause: Cause, stop: &CancellationToken) -> Ended {
        let Election {
            lease,
            coordinator,
            confirmed,
            ..
        } = self;
        let predecessor = lease.predecessor();
        let mut roles = coordinator.role();
        // Should it be fenced, it does not know who leads then.
        coordinator.set_leader(None);
        let taking = coordinator.take_over();
        let mut taking = std::pin::pin!(taking);
        let mut epoch = None;
        let candidate = lease.candidate().clone();
        let keeping = lease.keep(confirmed);
        let mut keeping = std::pin::pin!(keeping);
        tracing::info!(why = cause.words(), "this replica takes over");
        loop {
            let role = *roles.borrow_and_update();
            if role == Role::Fenced {
                tracing::warn!(?epoch, "another replica leads");
                return Ended::Fenced;
            }
            tokio::select! {
                () = stop.cancelled() => {
                    coordinator.step_down().await;
                    return Ended::Stopped;
                }
                taken = &mut taking, if epoch.is_none() => match taken {
                    Ok(taken) => {
                        epoch = Some(taken);
                        let lead = Lead { epoch: taken, cause, predecessor: predecessor.clone() };
                        tracing::info!(epoch = taken, "this replica leads");
                        self.observation.set_role(&format!("{LEADS} {taken}"));
                        self.metrics.leads.set(1);
                        self.metrics.takeovers.with_label_values(&[cause.as_str()]).inc();
                        self.pod.set_leads(true);
                        if let Some(pod) = lead.predecessor.clone() {
                            let (client, metrics) = (self.client.clone(), self.metrics.clone());
                            let namespace = candidate.namespace.clone();
                            tokio::spawn(async move {
                                own_pod::demote(client, &namespace, &pod, metrics).await;
                            });
                        }
                        self.leading.send_replace(Some(lead));
                    }
                    Err(error) => return Ended::Failed(error),
                },
                () = &mut keeping => {}
                changed = roles.changed() => if changed.is_err() { return Ended::Fenced },
            }
        }
    }
}

/// Whether a replica answers that it leads. One that was stopped, or was started again and follows, does not.
async fn says_that_it_leads(probes: &str) -> bool {
    let asking = async {
        let stream = TcpStream::connect(probes).await.ok()?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        let request = http::Request::get("/role")
            .header(http::header::HOST, probes)
            .body(Empty::<Bytes>::new())
            .ok()?;
        let answering = async {
            let answer = sender.send_request(request).await.ok()?;
            let body = Limited::new(answer.into_body(), ROLE_BYTES)
                .collect()
                .await
                .ok()?;
            Some(body.to_bytes())
        };
        tokio::select! {
            answer = answering => answer,
            _ = connection => None,
        }
    };
    let answer = tokio::time::timeout(ASK_LIMIT, asking).await;
    matches!(answer, Ok(Some(role)) if role.starts_with(LEADS.as_bytes()))
}

#[cfg(test)]
mod tests;
