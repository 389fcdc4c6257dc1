//! The life of ProofJobs on a real kube-apiserver, with a coordinator in this process and a worker that proves
//! nothing.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod fixture;
#[path = "../../../../crds/tests/api_server/kubernetes.rs"]
mod kubernetes;
mod sign_in;
mod takeover;
mod worker;

use fixture::{Fixture, condition, holds};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use prover_crds::{Phase, conditions, names, reasons};
use serde_json::json;
use worker::Permission;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_goes_from_apply_to_its_end_and_tells_its_story() {
    let fixture = Fixture::new().await;
    let coordinator = fixture.coordinator().await;
    let worker = fixture.worker(&coordinator).await;
    worker.permit(Permission::Start);
    fixture.submit("life", json!({})).await;
    let running = fixture.until_phase("life", Phase::Running).await;
    assert!(holds(&running, conditions::ACCEPTED, "True", reasons::ACCEPTED));
    assert!(holds(&running, conditions::RUNNING, "True", reasons::STARTED));
    worker.permit(Permission::Finish);
    let done = fixture.until_phase("life", Phase::Succeeded).await;
    assert!(holds(&done, conditions::FINISHED, "True", reasons::SUCCEEDED));
    assert!(holds(&done, conditions::SUCCEEDED, "True", reasons::SUCCEEDED));
    assert!(holds(&done, conditions::RUNNING, "False", reasons::SUCCEEDED));
    let status = done.status.clone().unwrap();
    assert_eq!(status.observed_generation, Some(1));
    assert_eq!(status.progress.unwrap().summary, "4/4");
    assert_eq!(status.attempts.unwrap().succeeded, 4);
    assert!(status.emulated && status.proof.is_none());
    assert!(status.public_values.unwrap().uri.starts_with("file:///"));
    assert_eq!(status.execution.unwrap().total_cycles, 131_072);
    let usage = status.usage.unwrap();
    assert!(usage.device_milliseconds > 0);
    assert_eq!(usage.cost.unwrap().currency, "USD");
    assert!(status.start_time.is_some() && status.completion_time.is_some());
    fixture
        .until_events(
            "life",
            &[reasons::ACCEPTED, "Queued", reasons::STARTED, reasons::SUCCEEDED],
        )
        .await;
    let managers: Vec<_> = done
        .managed_fields()
        .iter()
        .filter(|entry| entry.subresource.as_deref() == Some("status"))
        .map(|entry| entry.manager.clone().unwrap())
        .collect();
    assert_eq!(managers, [names::COORDINATOR_MANAGER]);
    drop(worker);
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_suspended_and_goes_on() {
    let fixture = Fixture::new().await;
    let coordinator = fixture.coordinator().await;
    let worker = fixture.worker(&coordinator).await;
    worker.permit(Permission::Start);
    fixture.submit("nap", json!({})).await;
    fixture.until_phase("nap", Phase::Running).await;
    fixture.patch("nap", json!({ "spec": { "suspend": true } })).await;
    let suspended = fixture.until_phase("nap", Phase::Suspended).await;
    assert!(holds(
        &suspended,
        conditions::SUSPENDED,
        "True",
        reasons::SUSPENDED
    ));
    assert_eq!(suspended.status.unwrap().observed_generation, Some(2));
    worker.permit(Permission::Finish);
    fixture
        .patch("nap", json!({ "spec": { "suspend": false } }))
        .await;
    let done = fixture.until_phase("nap", Phase::Succeeded).await;
    assert_eq!(condition(&done, conditions::SUSPENDED).unwrap().0, "False");
    fixture
        .until_events("nap", &[reasons::SUSPENDED, reasons::RESUMED, reasons::SUCCEEDED])
        .await;
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_cancelled_while_it_runs_and_before_it_begins() {
    let fixture = Fixture::new().await;
    let coordinator = fixture.coordinator().await;
    let worker = fixture.worker(&coordinator).await;
    worker.permit(Permission::Start);
    fixture.submit("stop", json!({})).await;
    fixture
        .submit("never", json!({ "spec": { "cancel": true } }))
        .await;
    fixture.until_phase("stop", Phase::Running).await;
    fixture.patch("stop", json!({ "spec": { "cancel": true } })).await;
    for name in ["stop", "never"] {
        let done = fixture.until_phase(name, Phase::Cancelled).await;
        assert!(
            holds(&done, conditions::FINISHED, "True", reasons::CANCELLED),
            "{name}"
        );
        assert!(
            holds(&done, conditions::CANCELLED, "True", reasons::CANCELLED),
            "{name}"
        );
    }
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_job_is_cancelled_and_what_it_left_is_collected() {
    let fixture = Fixture::new().await;
    let coordinator = fixture.coordinator().await;
    let worker = fixture.worker(&coordinator).await;
    worker.permit(Permission::Start);
    let finalizers = json!({ "metadata": { "finalizers": [names::JOB_FINALIZER] } });
    let job = fixture.submit("going", finalizers).await;
    fixture.until_phase("going", Phase::Running).await;
    assert!(!fixture.keys(&job).await.is_empty());
    fixture
        .jobs()
        .delete("going", &DeleteParams::default())
        .await
        .unwrap();
    let collected = fixture
        .until("going", "the collection", |job| {
            holds(
                job,
                conditions::ARTIFACTS_COLLECTED,
                "True",
                reasons::ARTIFACTS_COLLECTED,
            )
        })
        .await;
    assert!(holds(
        &collected,
        conditions::CANCELLED,
        "True",
        reasons::CANCELLED
    ));
    assert!(fixture.keys(&job).await.is_empty());
    fixture
        .patch("going", json!({ "metadata": { "finalizers": null } }))
        .await;
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_job_was_given_stays_when_the_job_that_made_it_is_deleted() {
    let fixture = Fixture::new().await;
    let coordinator = fixture.coordinator().await;
    let worker = fixture.worker(&coordinator).await;
    worker.permit(Permission::Segments);
    let finalizers = json!({ "metadata": { "finalizers": [names::JOB_FINALIZER] } });
    let maker = fixture.submit("maker", finalizers).await;
    fixture.until_key(&maker, "/two").await;
    let reader = fixture.submit("reader", json!({})).await;
    fixture.until_key(&reader, "/one").await;
    let params = DeleteParams::default();
    fixture.jobs().delete("maker", &params).await.unwrap();
    let (type_, reason) = (conditions::ARTIFACTS_COLLECTED, reasons::ARTIFACTS_COLLECTED);
    fixture
        .until("maker", "the collection", |job| holds(job, type_, "True", reason))
        .await;
    let keys = fixture.keys(&maker).await;
    assert_eq!(keys.len(), 1, "{keys:?}");
    assert!(keys[0].ends_with("/two"), "{keys:?}");
    worker.permit(Permission::Finish);
    fixture.until_phase("reader", Phase::Succeeded).await;
    // The coordinator deletes it with its last reader.
    fixture.until_keys(&maker, 0).await;
    fixture
        .patch("maker", json!({ "metadata": { "finalizers": null } }))
        .await;
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_results_of_a_deleted_job_stay_in_the_store() {
    let fixture = Fixture::new().await;
    let coordinator = fixture.coordinator().await;
    let _worker = fixture.worker(&coordinator).await;
    let finalizers = json!({ "metadata": { "finalizers": [names::JOB_FINALIZER] } });
    let job = fixture.submit("done", finalizers).await;
    let done = fixture.until_phase("done", Phase::Succeeded).await;
    // Another coordinator knows the job from its object only.
    coordinator.end().await;
    let coordinator = fixture.coordinator().await;
    fixture
        .jobs()
        .delete("done", &DeleteParams::default())
        .await
        .unwrap();
    fixture
        .until("done", "the collection", |job| {
            holds(
                job,
                conditions::ARTIFACTS_COLLECTED,
                "True",
                reasons::ARTIFACTS_COLLECTED,
            )
        })
        .await;
    let values = done.status.unwrap().public_values.unwrap().uri;
    let keys = fixture.keys(&job).await;
    assert_eq!(keys.len(), 1, "{keys:?}");
    assert!(values.ends_with(&keys[0]), "{values} {keys:?}");
    fixture
        .patch("done", json!({ "metadata": { "finalizers": null } }))
        .await;
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_of_other_managers_stay_and_the_operators_refusal_is_taken_over() {
    let fixture = Fixture::new().await;
    fixture.submit("shared", json!({})).await;
    let foreign = json!({
        "apiVersion": "proving.rs/v1alpha1", "kind": "ProofJob", "metadata": { "name": "shared" },
        "status": { "phase": "Pending", "reason": "ClusterNotFound", "conditions": [
            { "type": conditions::ACCEPTED, "status": "False", "reason": reasons::CLUSTER_NOT_FOUND,
              "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" },
            { "type": "HeldByGitOps", "status": "True", "reason": "Test", "message": "",
              "lastTransitionTime": "2026-01-01T00:00:00Z" },
        ] },
    });
    let params = PatchParams::apply(names::OPERATOR_MANAGER).force();
    fixture
        .jobs()
        .patch_status("shared", &params, &Patch::Apply(foreign))
        .await
        .unwrap();
    let coordinator = fixture.coordinator().await;
    let _worker = fixture.worker(&coordinator).await;
    let done = fixture.until_phase("shared", Phase::Succeeded).await;
    assert!(holds(&done, conditions::ACCEPTED, "True", reasons::ACCEPTED));
    assert!(holds(&done, "HeldByGitOps", "True", "Test"));
    let coordinators = done
        .managed_fields()
        .iter()
        .find(|entry| entry.manager.as_deref() == Some(names::COORDINATOR_MANAGER));
    let fields = serde_json::to_string(&coordinators.unwrap().fields_v1).unwrap();
    assert!(!fields.contains("HeldByGitOps"), "{fields}");
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_another_manages_is_left_alone() {
    let fixture = Fixture::new().await;
    let coordinator = fixture.coordinator().await;
    let _worker = fixture.worker(&coordinator).await;
    let other = json!({ "spec": { "managedBy": "example.com/other" } });
    fixture.submit("foreign", other).await;
    fixture.submit("ours", json!({})).await;
    fixture.until_phase("ours", Phase::Succeeded).await;
    let foreign = fixture.jobs().get("foreign").await.unwrap();
    assert!(foreign.status.is_none());
    assert!(fixture.events("foreign").await.is_empty());
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_that_no_backend_makes_is_refused_at_once_until_one_does() {
    let fixture = Fixture::new().await;
    let coordinator = fixture.coordinator().await;
    let command =
        json!({ "spec": { "proof": { "system": "command", "kind": "Proof", "backend": "gnark" } } });
    fixture.submit("gnark", command).await;
    let refused = fixture
        .until("gnark", "the refusal", |job| {
            holds(job, conditions::ACCEPTED, "False", reasons::PROOF_NOT_OFFERED)
        })
        .await;
    let status = refused.status.unwrap();
    assert_eq!(status.phase, Some(Phase::Pending));
    assert!(status.message.unwrap().contains("command:gnark"));
    fixture.until_events("gnark", &[reasons::PROOF_NOT_OFFERED]).await;
    let backends = json!([
        { "name": "made-up", "system": "emulated", "image": "made-up" },
        { "name": "gnark", "system": "command", "image": "gnark", "command": {
            "prove": ["/prove", "{proof}"], "verify": ["/verify", "{program}", "{proof}"],
        } },
    ]);
    fixture
        .patch_cluster(json!({ "spec": { "backends": backends } }))
        .await;
    let queued = fixture.until_phase("gnark", Phase::Queued).await;
    assert!(holds(&queued, conditions::ACCEPTED, "True", reasons::ACCEPTED));
    fixture
        .until("gnark", "the reason of its wait", |job| {
            job.status.as_ref().and_then(|status| status.reason.as_deref())
                == Some(reasons::NO_WORKER_OF_BACKEND)
        })
        .await;
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounds_of_the_cluster_hold_and_room_is_used() {
    let fixture = Fixture::new().await;
    let limits = json!({ "namespaces": [{ "namespace": "*", "maxUnfinishedJobs": 1, "maxPriority": 5 }] });
    fixture
        .patch_cluster(json!({ "spec": { "limits": limits } }))
        .await;
    let coordinator = fixture.coordinator().await;
    let worker = fixture.worker(&coordinator).await;
    worker.permit(Permission::Start);
    fixture.submit("first", json!({})).await;
    fixture.until_phase("first", Phase::Running).await;
    fixture.submit("second", json!({})).await;
    fixture
        .submit("urgent", json!({ "spec": { "priority": 6 } }))
        .await;
    for (name, reason) in [
        ("second", reasons::TOO_MANY_JOBS),
        ("urgent", reasons::PRIORITY_TOO_HIGH),
    ] {
        fixture
            .until(name, reason, |job| {
                holds(job, conditions::ACCEPTED, "False", reason)
            })
            .await;
    }
    worker.permit(Permission::Finish);
    fixture.until_phase("second", Phase::Succeeded).await;
    fixture
        .patch("urgent", json!({ "spec": { "priority": 5 } }))
        .await;
    fixture.until_phase("urgent", Phase::Succeeded).await;
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_come_and_go_while_the_coordinator_runs() {
    let fixture = Fixture::new().await;
    let other = format!("{}-other", fixture.namespace);
    fixture.create_namespace(&other).await;
    let coordinator = fixture.coordinator().await;
    let worker = fixture.worker(&coordinator).await;
    worker.permit(Permission::Start);
    fixture.submit_to(&other, "guest", json!({})).await;
    fixture.allow(&[&fixture.namespace, &other]).await;
    let phase = |wanted: Phase| {
        move |job: &prover_crds::ProofJob| job.status.as_ref().and_then(|status| status.phase) == Some(wanted)
    };
    fixture
        .until_in(&other, "guest", "Running", phase(Phase::Running))
        .await;
    fixture.allow(&[&fixture.namespace]).await;
    // The list of namespaces has arrived when a job of a removed one is refused.
    fixture.submit_to(&other, "late", json!({})).await;
    fixture
        .until_in(&other, "late", "the refusal", |job| {
            holds(job, conditions::ACCEPTED, "False", reasons::NAMESPACE_NOT_ALLOWED)
                || phase(Phase::Running)(job)
        })
        .await;
    worker.permit(Permission::Finish);
    fixture
        .until_in(&other, "guest", "Succeeded", phase(Phase::Succeeded))
        .await;
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_coordinator_goes_on_with_its_jobs() {
    let fixture = Fixture::new().await;
    let coordinator = fixture.coordinator().await;
    let worker = fixture.worker(&coordinator).await;
    let finished = fixture.submit("finished", json!({})).await;
    fixture.until_phase("finished", Phase::Succeeded).await;
    worker.permit(Permission::Start);
    fixture.submit("unfinished", json!({})).await;
    let running = fixture.until_phase("unfinished", Phase::Running).await;
    let before = fixture.jobs().get("finished").await.unwrap();
    coordinator.end().await;
    drop(worker);

    let coordinator = fixture.coordinator().await;
    let _worker = fixture.worker(&coordinator).await;
    let succeeded = fixture.until_phase("unfinished", Phase::Succeeded).await;
    assert_eq!(
        succeeded.status.unwrap().start_time,
        running.status.unwrap().start_time
    );
    fixture.until_events("unfinished", &[reasons::SUCCEEDED]).await;
    let after = fixture.jobs().get("finished").await.unwrap();
    assert_eq!(after.metadata.resource_version, before.metadata.resource_version);
    assert_eq!(finished.uid(), after.uid());
    assert!(
        !fixture
            .events("unfinished")
            .await
            .contains(&reasons::COORDINATOR_RESTARTED.to_owned())
    );
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_program_fails_the_job_in_words_for_its_user() {
    let fixture = Fixture::new().await;
    let backends = json!([{ "name": "risc0", "system": "risc0", "image": "risc0" }]);
    let groups = json!([{ "name": "test", "backend": "risc0", "device": { "cpu": {} } }]);
    fixture
        .patch_cluster(json!({ "spec": { "backends": backends, "workerGroups": groups } }))
        .await;
    let coordinator = fixture.coordinator().await;
    let risc0 = json!({ "spec": { "proof": { "system": "risc0", "kind": "Succinct" } } });
    fixture.submit("bad", risc0).await;
    let failed = fixture.until_phase("bad", Phase::Failed).await;
    assert!(
        holds(&failed, conditions::FAILED, "True", reasons::INVALID_PROGRAM),
        "{:#?}",
        failed.status
    );
    let failure = failed.status.unwrap().failure.unwrap();
    assert!(failure.invalid_input && !failure.message.is_empty());
    fixture.until_events("bad", &[reasons::INVALID_PROGRAM]).await;
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_comes_when_everything_is_known() {
    let fixture = Fixture::new().await;
    fixture.allow(&[&fixture.namespace]).await;
    let coordinator = fixture.coordinator().await;
    let begin = std::time::Instant::now();
    loop {
        let answer = coordinator.get("/readyz").await;
        if answer.starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(
            answer.starts_with("HTTP/1.1 503")
                && (answer.contains("ProverCluster") || answer.contains("the log of the leader")),
            "{answer}"
        );
        assert!(begin.elapsed() < fixture::SOON, "{answer}");
        tokio::task::yield_now().await;
    }
    let metrics = coordinator.get("/metrics").await;
    assert!(
        metrics.contains("prover_coordinator_kubernetes_jobs"),
        "{metrics}"
    );
    let api: kube::Api<ConfigMap> = kube::Api::namespaced(fixture.client.clone(), &fixture.namespace);
    api.delete(&names::namespaces_config("main"), &DeleteParams::default())
        .await
        .unwrap();
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_as_many_jobs_run_at_once_as_may() {
    let fixture = Fixture::new().await;
    fixture
        .patch_cluster(json!({ "spec": { "limits": { "maxRunningJobs": 1 } } }))
        .await;
    let coordinator = fixture.coordinator().await;
    let worker = fixture.worker(&coordinator).await;
    worker.permit(Permission::Start);
    fixture.submit("first", json!({})).await;
    fixture.until_phase("first", Phase::Running).await;
    fixture.submit("second", json!({})).await;
    fixture
        .until("second", "the wait for its turn", |job| {
            let status = job.status.as_ref();
            status.and_then(|status| status.reason.as_deref()) == Some(reasons::WAITING_FOR_QUOTA)
        })
        .await;
    // A suspended job makes room, and has to wait when it wants to go on.
    fixture
        .patch("first", json!({ "spec": { "suspend": true } }))
        .await;
    fixture.until_phase("second", Phase::Running).await;
    fixture
        .patch("first", json!({ "spec": { "suspend": false } }))
        .await;
    fixture
        .until("first", "the wait for its turn", |job| {
            let status = job.status.as_ref();
            status.and_then(|status| status.reason.as_deref()) == Some(reasons::WAITING_FOR_QUOTA)
        })
        .await;
    worker.permit(Permission::Finish);
    for name in ["second", "first"] {
        fixture.until_phase(name, Phase::Succeeded).await;
    }
    coordinator.end().await;
}

/// The writer relies on it: a status never reaches a later object of the same name. A wrong uid alone would be taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_server_refuses_a_status_for_another_version() {
    let fixture = Fixture::new().await;
    let version = fixture
        .submit("other", json!({}))
        .await
        .resource_version()
        .unwrap();
    fixture.patch("other", json!({ "spec": { "priority": 1 } })).await;
    let patch = json!({
        "apiVersion": "proving.rs/v1alpha1", "kind": "ProofJob",
        "metadata": { "name": "other", "namespace": fixture.namespace, "resourceVersion": version },
        "status": { "phase": "Running" },
    });
    let params = PatchParams::apply(names::COORDINATOR_MANAGER).force();
    let refused = fixture
        .jobs()
        .patch_status("other", &params, &Patch::Apply(patch))
        .await;
    let Err(kube::Error::Api(status)) = refused else {
        panic!("it was taken: {refused:?}");
    };
    assert_eq!(status.code, 409);
}

/// Not a bound on a busy machine: it prints what was measured. See also the metric `first_task_seconds`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_start_soon_after_they_are_applied() {
    const JOBS: usize = 100;
    let fixture = Fixture::new().await;
    let coordinator = fixture.coordinator().await;
    let worker = fixture.worker(&coordinator).await;
    fixture.submit("warm", json!({})).await;
    fixture.until_phase("warm", Phase::Succeeded).await;
    let mut waits = Vec::new();
    for index in 0..JOBS {
        let begin = std::time::Instant::now();
        let job = fixture.submit(&format!("job-{index}"), json!({})).await;
        let started = worker.started(&job.uid().unwrap()).await;
        waits.push(started.duration_since(begin));
    }
    waits.sort();
    println!(
        "from apply to the first running task, {JOBS} jobs one after another: median {:?}, p99 {:?}, longest {:?}",
        waits[JOBS / 2],
        waits[JOBS * 99 / 100],
        waits[JOBS - 1]
    );
    assert!(waits[JOBS / 2] < fixture::SOON);
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_jobs_at_the_start_of_a_coordinator_are_all_proved() {
    const JOBS: usize = 100;
    let fixture = Fixture::new().await;
    for index in 0..JOBS {
        fixture.submit(&format!("job-{index}"), json!({})).await;
    }
    let coordinator = fixture.coordinator().await;
    let _worker = fixture.worker(&coordinator).await;
    for index in 0..JOBS {
        fixture
            .until_phase(&format!("job-{index}"), Phase::Succeeded)
            .await;
    }
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_bound_on_sources_holds_for_the_next_job() {
    let fixture = Fixture::new().await;
    let coordinator = fixture.coordinator().await;
    let worker = fixture.worker(&coordinator).await;
    worker.permit(Permission::Start);
    let limit = |size: &str| json!({ "spec": { "limits": { "maxSourceSize": size } } });
    fixture.patch_cluster(limit("2")).await;
    fixture.until_failed_for_size("large").await;
    fixture.patch_cluster(limit("3")).await;
    fixture.until_accepted_in_size("fits").await;
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_go_when_their_retention_is_over_and_the_status_says_so() {
    let fixture = Fixture::new().await;
    let coordinator = fixture.coordinator().await;
    let worker = fixture.worker(&coordinator).await;
    let job = fixture.submit("kept", json!({})).await;
    fixture.until_phase("kept", Phase::Succeeded).await;
    // What verify was given, though emulated work claims no proof, and the public values.
    fixture.until_keys(&job, 2).await;
    // Another coordinator knows the job from its object only.
    drop(worker);
    coordinator.end().await;
    let coordinator = fixture.coordinator().await;
    let fresh = fixture.submit("fresh", json!({})).await;
    fixture.until_phase("fresh", Phase::Queued).await;
    assert_eq!(fixture.keys(&job).await.len(), 2);
    let retention = |seconds: i64| json!({ "spec": { "defaults": { "proofRetentionSeconds": seconds } } });
    fixture.patch_cluster(retention(1)).await;
    let deleted =
        |job: &prover_crds::ProofJob| holds(job, conditions::PROOF_DELETED, "True", reasons::RETENTION_OVER);
    let told = fixture.until("kept", "the end of its retention", deleted).await;
    assert!(fixture.keys(&job).await.is_empty());
    assert!(!fixture.keys(&fresh).await.is_empty());
    let status = told.status.unwrap();
    assert!(
        status.public_values.is_some(),
        "the record of what was proved stays"
    );
    assert_eq!(status.phase, Some(Phase::Succeeded));
    fixture.until_events("kept", &[reasons::RETENTION_OVER]).await;
    coordinator.end().await;
}
