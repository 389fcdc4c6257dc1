//! ProofJobs that only the operator looks after.

use std::sync::atomic::Ordering;
use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams};
use kube::{Resource, ResourceExt};
use prover_crds::{ProofJob, conditions, names, reasons};
use serde_json::{Value, json};

use crate::support::{Server, eventually};

async fn accepted(server: &Server, job: &ProofJob) -> Option<(String, String)> {
    let job = server
        .jobs(&job.namespace().unwrap())
        .get(&job.name_any())
        .await
        .unwrap();
    let list = job.status.map(|status| status.conditions).unwrap_or_default();
    conditions::find(&list, conditions::ACCEPTED)
        .map(|condition| (condition.status.clone(), condition.reason.clone()))
}

async fn is_gone(server: &Server, job: &ProofJob) -> bool {
    server
        .jobs(&job.namespace().unwrap())
        .get_opt(&job.name_any())
        .await
        .unwrap()
        .is_none()
}

async fn has_finalizer(server: &Server, job: &ProofJob) -> bool {
    let job = server
        .jobs(&job.namespace().unwrap())
        .get(&job.name_any())
        .await
        .unwrap();
    job.finalizers()
        .iter()
        .any(|finalizer| finalizer == names::JOB_FINALIZER)
}

fn condition(type_: &str, reason: &str) -> Value {
    json!({
        "type": type_, "status": "True", "reason": reason, "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

fn finished() -> Value {
    json!({
        "phase": "Succeeded", "completionTime": "2026-01-01T00:00:00Z",
        "conditions": [
            condition(conditions::ACCEPTED, reasons::ACCEPTED), condition(conditions::FINISHED, reasons::SUCCEEDED),
        ],
    })
}

#[tokio::test]
async fn a_job_is_refused_while_no_cluster_takes_it_and_left_to_the_coordinator_then() {
    let server = Server::start().await;
    let namespace = server.namespace("refused").await;
    let other = server.namespace("refused-other").await;
    let operator = server.operator(&[&namespace, &other]);
    let job = server.create_job(&namespace, "early", &json!({})).await;
    let foreign = json!({ "spec": { "clusterRef": { "name": "main", "namespace": namespace } } });
    let foreign = server.create_job(&other, "foreign", &foreign).await;
    let not_ours = json!({ "spec": { "managedBy": "other.example/controller" } });
    let not_ours = server.create_job(&namespace, "not-ours", &not_ours).await;
    let not_found = Some(("False".to_owned(), reasons::CLUSTER_NOT_FOUND.to_owned()));
    eventually("both are told that there is no cluster", || async {
        accepted(&server, &job).await == not_found && accepted(&server, &foreign).await == not_found
    })
    .await;

    server.create_cluster(&namespace, "main", &json!({})).await;
    let not_allowed = Some(("False".to_owned(), reasons::NAMESPACE_NOT_ALLOWED.to_owned()));
    eventually("the namespace is told that it is not allowed", || async {
        accepted(&server, &foreign).await == not_allowed
    })
    .await;
    eventually(
        "the job is protected and the operator takes back what it said",
        || async { has_finalizer(&server, &job).await && accepted(&server, &job).await.is_none() },
    )
    .await;

    // The coordinator says yes; then the cluster goes, and the operator says no in its place.
    let yes = json!({ "conditions": [condition(conditions::ACCEPTED, reasons::ACCEPTED)] });
    server.apply_status(&job, names::COORDINATOR_MANAGER, &yes).await;
    let clusters: Api<prover_crds::ProverCluster> = Api::namespaced(server.client.clone(), &namespace);
    clusters.delete("main", &DeleteParams::default()).await.unwrap();
    eventually("the job is told that the cluster is gone", || async {
        accepted(&server, &job).await == not_found
    })
    .await;
    server.apply_status(&job, names::COORDINATOR_MANAGER, &yes).await;
    let present = server.jobs(&namespace).get("early").await.unwrap();
    let list = present.status.unwrap().conditions;
    assert_eq!(list.len(), 1, "both managers write one condition: {list:?}");

    assert_eq!(accepted(&server, &not_ours).await, None);
    let untouched = server.jobs(&namespace).get("not-ours").await.unwrap();
    assert_eq!(untouched.resource_version(), not_ours.resource_version());
    operator.stop().await;
}

#[tokio::test]
async fn a_deleted_job_goes_once_its_artifacts_are_collected() {
    let server = Server::start().await;
    let namespace = server.namespace("collected").await;
    let operator = server.operator(&[&namespace]);
    server.create_cluster(&namespace, "main", &json!({})).await;
    let finalizers = json!({ "metadata": { "finalizers": ["example.org/other", names::JOB_FINALIZER] } });
    let job = server.create_job(&namespace, "job", &json!({})).await;
    let shared = server.create_job(&namespace, "shared", &finalizers).await;
    eventually("the finalizer is there", || has_finalizer(&server, &job)).await;
    for job in [&job, &shared] {
        server
            .jobs(&namespace)
            .delete(&job.name_any(), &DeleteParams::default())
            .await
            .unwrap();
    }
    let collected =
        json!({ "conditions": [condition(conditions::ARTIFACTS_COLLECTED, "ArtifactsCollected")] });
    assert!(has_finalizer(&server, &job).await);
    for job in [&job, &shared] {
        server
            .apply_status(job, names::COORDINATOR_MANAGER, &collected)
            .await;
    }
    eventually("the job is gone", || is_gone(&server, &job)).await;
    eventually("the finalizer of another stays", || async {
        let job = server.jobs(&namespace).get("shared").await.unwrap();
        job.finalizers() == ["example.org/other"]
    })
    .await;
    // Without a cluster nobody could collect anything.
    let orphan = json!({
        "metadata": { "finalizers": [names::JOB_FINALIZER] }, "spec": { "clusterRef": { "name": "absent" } },
    });
    let orphan = server.create_job(&namespace, "orphan", &orphan).await;
    server
        .jobs(&namespace)
        .delete("orphan", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the orphan is gone", || is_gone(&server, &orphan)).await;
    operator.stop().await;
}

#[tokio::test]
async fn a_finished_job_is_deleted_after_its_time_unless_git_keeps_it() {
    let server = Server::start().await;
    let namespace = server.namespace("lifetime").await;
    let operator = server.operator(&[&namespace]);
    server
        .create_cluster(
            &namespace,
            "main",
            &json!({ "spec": { "defaults": { "ttlSecondsAfterFinished": 1 } } }),
        )
        .await;
    let by_default = server.create_job(&namespace, "by-default", &json!({})).await;
    let flux = json!({ "metadata": { "labels": { "kustomize.toolkit.fluxcd.io/name": "apps" } } });
    let held = server.create_job(&namespace, "held", &flux).await;
    let stays = json!({ "spec": { "ttlSecondsAfterFinished": 315_360_000 } });
    let stays = server.create_job(&namespace, "stays", &stays).await;
    for job in [&by_default, &held, &stays] {
        eventually("the finalizer is there", || has_finalizer(&server, job)).await;
        server
            .apply_status(job, names::COORDINATOR_MANAGER, &finished())
            .await;
    }
    eventually("the job is being deleted", || async {
        let job = server.jobs(&namespace).get("by-default").await.unwrap();
        job.meta().deletion_timestamp.is_some()
    })
    .await;
    let events: Api<Event> = Api::namespaced(server.client.clone(), &namespace);
    let told = || async {
        let events = events.list(&Default::default()).await.unwrap();
        events
            .iter()
            .filter(|event| event.reason.as_deref() == Some(reasons::TTL_HELD_BY_GITOPS))
            .count()
    };
    eventually("the held job is told why", || async { told().await == 1 }).await;
    for job in [&held, &stays] {
        let job = server.jobs(&namespace).get(&job.name_any()).await.unwrap();
        assert!(job.meta().deletion_timestamp.is_none());
    }
    // Another change of the held job tells nothing again.
    server
        .apply_status(&held, "somebody", &json!({ "effectiveHz": 5 }))
        .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(told().await, 1);
    operator.stop().await;
}

#[tokio::test]
async fn nothing_is_asked_of_the_api_server_while_nothing_changes() {
    let server = Server::start().await;
    let namespace = server.namespace("quiet").await;
    let operator = server.operator(&[&namespace]);
    for number in 0..30 {
        let more = json!({ "spec": { "clusterRef": { "name": "absent" } } });
        let job = server
            .create_job(&namespace, &format!("job-{number}"), &more)
            .await;
        eventually("the job is refused", || async {
            accepted(&server, &job).await.is_some()
        })
        .await;
    }
    // What remains are the renewals of the Lease: a read and a write every two seconds.
    let before = operator.requests.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let asked = operator.requests.load(Ordering::SeqCst) - before;
    assert!(asked <= 12, "{asked} requests in ten quiet seconds");
    operator.stop().await;
}
