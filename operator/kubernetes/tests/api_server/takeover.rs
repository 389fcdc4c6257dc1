//! Two replicas of a coordinator, the Lease between them, and what each says of itself.

use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt;
use kube::api::Api;
use prover_crds::{Phase, names, reasons};
use serde_json::json;

use crate::fixture::Fixture;

const A: &str = "main-coordinator-a";
const B: &str = "main-coordinator-b";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_replica_takes_over_when_the_first_one_ends_and_looks_after_its_jobs() {
    let fixture = Fixture::new().await;
    fixture.create_pod(A).await;
    fixture.create_pod(B).await;
    let first = fixture.replica(A).await;
    fixture.until_role(A, names::LEADER).await;
    let second = fixture.replica(B).await;
    fixture.until_role(B, names::FOLLOWER).await;
    fixture.submit("handed-over", json!({})).await;
    fixture.until_phase("handed-over", Phase::Queued).await;
    assert!(second.get("/role").await.ends_with("follows\n"));

    first.end().await;
    fixture.until_role(B, names::LEADER).await;
    assert!(second.get("/role").await.contains("leads "));
    fixture.until_role(A, names::FOLLOWER).await;
    let leases: Api<Lease> = Api::namespaced(fixture.client.clone(), &fixture.namespace);
    let lease = leases.get(&names::coordinator_name("main")).await.unwrap();
    assert_eq!(lease.owner_references()[0].uid, fixture.cluster_uid().await);
    let spec = lease.spec.unwrap();
    assert_eq!(spec.holder_identity.as_deref(), Some(B));
    assert_eq!(spec.lease_duration_seconds, Some(3));
    fixture
        .until_events("main", &[reasons::COORDINATOR_TOOK_OVER])
        .await;

    let _worker = fixture.worker(&second).await;
    fixture.until_phase("handed-over", Phase::Succeeded).await;
    second.end().await;
    let lease = leases.get(&names::coordinator_name("main")).await.unwrap();
    assert_eq!(
        lease.spec.unwrap().holder_identity.as_deref(),
        Some(""),
        "it was given back"
    );
}
