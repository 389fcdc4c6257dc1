//! Two candidates for one Lease.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use prover_controller::leader::{Candidate, LEASE_DURATION, LEASE_NAME, Lost, RENEW_DEADLINE, RETRY_PERIOD};
use prover_runtime::SystemClock;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::Server;

fn candidate(server: &Server, namespace: &str, name: &str) -> Candidate {
    Candidate::new(
        server.client.clone(),
        namespace,
        name,
        Arc::new(SystemClock::new()),
    )
}

#[tokio::test]
async fn a_released_lease_changes_hands_within_a_try_and_a_dead_holders_when_it_is_over() {
    let server = Server::start().await;
    let namespace = server.namespace("election").await;
    let stop = CancellationToken::new();
    let (mut first, mut second) = (
        candidate(&server, &namespace, "a"),
        candidate(&server, &namespace, "b"),
    );
    let since = first.acquire().await;
    let begin = Instant::now();
    let waits = tokio::spawn(async move {
        second.acquire().await;
        second
    });
    // The holder renews for longer than a Lease lasts, and nobody takes it.
    let holding = tokio::time::timeout(LEASE_DURATION + RETRY_PERIOD, first.hold(since, &stop)).await;
    assert!(holding.is_err(), "the Lease was lost: {holding:?}");
    assert!(!waits.is_finished());
    first.release().await.unwrap();
    let second = tokio::time::timeout(RETRY_PERIOD * 3, waits)
        .await
        .expect("it is taken at once")
        .unwrap();
    assert!(begin.elapsed() >= LEASE_DURATION);
    // The second holder dies without a word.
    drop(second);
    let begin = Instant::now();
    let mut third = candidate(&server, &namespace, "c");
    third.acquire().await;
    let took = begin.elapsed();
    assert!(
        took >= RENEW_DEADLINE,
        "it was taken after {took:?} while its holder may have believed that it leads"
    );
    assert!(took < LEASE_DURATION + RETRY_PERIOD * 3, "it took {took:?}");
    let api: Api<Lease> = Api::namespaced(server.client.clone(), &namespace);
    let lease = api.get(LEASE_NAME).await.unwrap().spec.unwrap();
    assert_eq!(
        (lease.holder_identity.as_deref(), lease.lease_transitions),
        (Some("c"), Some(2))
    );
}

#[tokio::test]
async fn a_leader_whose_lease_is_taken_or_can_not_be_written_leads_no_more() {
    let server = Server::start().await;
    let namespace = server.namespace("election-lost").await;
    let stop = CancellationToken::new();
    let mut leader = candidate(&server, &namespace, "a");
    let since = leader.acquire().await;
    let api: Api<Lease> = Api::namespaced(server.client.clone(), &namespace);
    let thief = Patch::Merge(json!({ "spec": { "holderIdentity": "thief" } }));
    api.patch(LEASE_NAME, &PatchParams::default(), &thief)
        .await
        .unwrap();
    let lost = tokio::time::timeout(Duration::from_secs(10), leader.hold(since, &stop))
        .await
        .unwrap();
    assert!(
        matches!(lost, Err(Lost::Taken { ref holder }) if holder == "thief"),
        "{lost:?}"
    );

    let gone = server.namespace("election-gone").await;
    let mut leader = candidate(&server, &gone, "a");
    let since = leader.acquire().await;
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(server.client.clone());
    namespaces.delete(&gone, &DeleteParams::default()).await.unwrap();
    let api: Api<Lease> = Api::namespaced(server.client.clone(), &gone);
    api.delete(LEASE_NAME, &DeleteParams::default()).await.unwrap();
    // A Lease that can't be made again, since its namespace goes.
    let begin = Instant::now();
    let lost = leader.hold(since, &stop).await;
    assert!(matches!(lost, Err(Lost::NotRenewed { .. })), "{lost:?}");
    assert!(begin.elapsed() < LEASE_DURATION, "{:?}", begin.elapsed());
}
