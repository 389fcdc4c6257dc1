//! What users do to jobs on the API: suspend, resume, cancel, deadlines, time to live.

use std::time::Duration;

use prover_e2e::{Manifest, Model};
use serde_json::json;

use crate::support::kubectl::{await_gone, kubectl, patch};

use crate::support::scene::{Scene, condition, is_true};
use crate::support::steps::{
    Applied, JOB_FINISHED, JOB_RUNNING, attempts, expect_no_leaked_artifacts, expect_only_kept,
    start_emulated, submit,
};

/// From a change of spec to what follows from it.
const HEEDED: Duration = Duration::from_secs(20);

fn slow_job(name: &str) -> Manifest {
    Model::new(20).duration("prove", 500).manifest(name)
}

#[test]
fn a_suspended_job_frees_its_workers_and_goes_on_where_it_was() {
    let scene = Scene::new("suspend");
    start_emulated(&scene, 1);
    let job = submit(&scene, &slow_job("pauses"));
    job.wait("it runs", JOB_RUNNING, |job| Applied::done(job, "Prove") >= 3);
    patch(
        scene.namespace(),
        "proofjob",
        "pauses",
        &json!({"spec": {"suspend": true}}),
    );
    let suspended = job.wait("it is suspended", HEEDED, |job| is_true(job, "Suspended"));
    let before = Applied::done(&suspended, "Prove");
    // Another job has the worker now.
    submit(&scene, &Model::new(2).duration("prove", 100).manifest("between")).succeeded(JOB_FINISHED);
    assert!(is_true(&job.now(), "Suspended"));
    patch(
        scene.namespace(),
        "proofjob",
        "pauses",
        &json!({"spec": {"suspend": false}}),
    );
    let done = job.succeeded(JOB_FINISHED);
    // The planner, what was uploaded, what ran, and what was fetched ahead.
    let again = attempts(&done, "started") - attempts(&done, "succeeded");
    assert!(
        again <= 4,
        "{again} attempts were given up by suspending at {before} segments: {:#}",
        done["status"]
    );
    scene.finish();
}

#[test]
fn a_cancelled_job_ends_at_once_and_leaves_nothing() {
    let scene = Scene::new("cancel");
    start_emulated(&scene, 1);
    let job = submit(&scene, &slow_job("unwanted"));
    job.wait("it runs", JOB_RUNNING, |job| Applied::done(job, "Prove") >= 1);
    patch(
        scene.namespace(),
        "proofjob",
        "unwanted",
        &json!({"spec": {"cancel": true}}),
    );
    let done = job.finished(HEEDED);
    assert!(is_true(&done, "Cancelled"), "{:#}", done["status"]);
    assert_eq!(condition(&done, "Finished").unwrap()["reason"], "Cancelled");
    let refused = crate::support::kubectl::try_kubectl(&[
        "patch",
        "proofjob",
        "unwanted",
        "--namespace",
        scene.namespace(),
        "--type=merge",
        "--patch",
        r#"{"spec":{"cancel":false}}"#,
    ]);
    assert!(!refused.status.success(), "cancel must not be taken back");
    expect_no_leaked_artifacts(&scene, &[&job]);
    job.delete(Duration::from_secs(60));
    expect_only_kept(&scene, &done);
    scene.finish();
}

#[test]
fn a_job_past_its_active_deadline_fails_with_that_reason() {
    let scene = Scene::new("deadline");
    start_emulated(&scene, 1);
    let job = submit(&scene, &slow_job("late").spec("activeDeadlineSeconds", json!(3)));
    let failed = job.failed("ActiveDeadlineExceeded", JOB_RUNNING);
    expect_no_leaked_artifacts(&scene, &[&job]);
    job.delete(Duration::from_secs(60));
    expect_only_kept(&scene, &failed);
    scene.finish();
}

#[test]
fn a_job_with_a_time_to_live_is_deleted_after_its_end() {
    let scene = Scene::new("ttl");
    start_emulated(&scene, 1);
    let job = submit(
        &scene,
        &Model::new(2)
            .manifest("brief")
            .spec("ttlSecondsAfterFinished", json!(2)),
    );
    let done = job.succeeded(JOB_FINISHED);
    await_gone(scene.namespace(), "proofjob", &job.name, Duration::from_secs(40));
    expect_only_kept(&scene, &done);
    scene.finish();
}

#[test]
fn kubectl_shows_how_a_job_stands() {
    let scene = Scene::new("columns");
    start_emulated(&scene, 1);
    submit(&scene, &Model::new(2).manifest("shown")).succeeded(JOB_FINISHED);
    let table = kubectl(&["get", "proofjobs", "--namespace", scene.namespace()]);
    let mut lines = table.lines();
    let heads = lines.next().unwrap_or_default();
    for column in ["PHASE", "PROGRESS", "SYSTEM", "KIND", "AGE"] {
        assert!(heads.contains(column), "no column {column}: {heads}");
    }
    let row = lines.next().unwrap_or_default();
    assert!(row.contains("Succeeded") && row.contains("emulated"), "{table}");
    let story = kubectl(&["describe", "proofjob", "shown", "--namespace", scene.namespace()]);
    assert!(
        story.contains("Events:") && story.contains("Succeeded"),
        "{story}"
    );
    scene.finish();
}
