//! Workers, backends and programs that break while jobs run: no job is lost, and nothing that was finished is done
//! again. What takes something from the whole cluster is in `whole_cluster`.

use std::time::Duration;

use prover_e2e::Model;
use serde_json::json;

use crate::support::kubectl::{await_gone, kubectl};
use crate::support::node;
use crate::support::objects::{Cluster, image};
use crate::support::proofs::{Kind, LONG, expect_verified, fibonacci, risc0};
use crate::support::scene::{Scene, condition};
use crate::support::steps::{
    Applied, JOB_FINISHED, JOB_RUNNING, POD_REPLACED, REAL_PROOF, attempts, await_cluster, await_middle,
    await_workers, expect_no_leaked_artifacts, expect_nothing_lost, expect_only_kept, kill_pod, name,
    restarts, runs_planner, slow_job, start_cluster, start_emulated, submit, submit_in, workers,
};

#[test]
fn a_worker_pod_deleted_mid_segment_costs_only_what_it_ran() {
    let scene = Scene::new("pod-killed");
    start_emulated(&scene, 2);
    let job = submit(&scene, &slow_job("survives"));
    await_middle(&job);
    kill_pod(&scene, name(&workers(&scene, "cpu")[0]));
    let done = job.succeeded(JOB_FINISHED);
    expect_one_worker_lost(&done);
    await_workers(&scene, "cpu", 2, POD_REPLACED);
    expect_no_leaked_artifacts(&scene, &[&job]);
    job.delete(Duration::from_secs(60));
    expect_only_kept(&scene, &done);
    scene.finish();
}

#[test]
fn a_real_proof_whose_worker_pod_is_deleted_mid_segment_verifies() {
    let scene = Scene::new("real-pod-killed");
    start_cluster(&scene, &risc0(&scene, Kind::Composite, 2));
    let job = submit(
        &scene,
        &fibonacci(scene.namespace(), "survives", Kind::Composite, LONG),
    );
    job.wait("a segment is proved", REAL_PROOF, |job| {
        Applied::done(job, "Prove") >= 1
    });
    kill_pod(&scene, name(&workers(&scene, "prover")[0]));
    let done = job.succeeded(REAL_PROOF);
    expect_one_worker_lost(&done);
    expect_verified(&done, "fibonacci");
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

/// What a lost worker costs: what it was uploading, what it ran, what it had fetched ahead, and perhaps the planner;
/// nothing, where the moment was between two segments.
fn expect_one_worker_lost(job: &serde_json::Value) {
    let lost = attempts(job, "lost");
    assert!(lost <= 4, "{lost} attempts were lost with one worker");
    assert_eq!(
        attempts(job, "failed"),
        0,
        "a lost pod is not the job's own failure"
    );
}

#[test]
fn a_prover_killed_mid_segment_is_started_again_in_its_container_and_the_proof_verifies() {
    let scene = Scene::new("real-crash");
    start_cluster(&scene, &risc0(&scene, Kind::Composite, 1));
    let job = submit(
        &scene,
        &fibonacci(scene.namespace(), "crashes", Kind::Composite, LONG),
    );
    job.wait("a segment is proved", REAL_PROOF, |job| {
        Applied::done(job, "Prove") >= 1
    });
    let pods = workers(&scene, "prover");
    node::signal(&pods[0], "backend-cpu-0", "prover-backend-risc0", "KILL");
    let done = job.succeeded(REAL_PROOF);
    assert_eq!(
        (attempts(&done, "failed"), attempts(&done, "lost")),
        (1, 0),
        "a crash costs the segment that was being proved: {:#}",
        done["status"]
    );
    let after = workers(&scene, "prover");
    assert_eq!(
        (name(&after[0]), restarts(&after[0])),
        (name(&pods[0]), 0),
        "the supervisor starts the prover again, not the kubelet"
    );
    expect_verified(&done, "fibonacci");
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn a_backend_killed_for_memory_costs_its_attempt_and_never_the_worker() {
    let scene = Scene::new("memory");
    start_emulated(&scene, 1);
    // More than the container's limit, in the first plan of the job only.
    let job = submit(
        &scene,
        &Model::new(4)
            .duration("prove", 200)
            .failure(
                json!({"task": "prove", "index": 1, "belowReduction": 1, "effect": {"allocate": 800 << 20}}),
            )
            .manifest("hungry"),
    );
    let done = job.succeeded(JOB_FINISHED);
    assert_eq!(done["status"]["attempts"]["replans"], 1, "{:#}", done["status"]);
    let pods = workers(&scene, "cpu");
    let agent = pods[0]["status"]["containerStatuses"]
        .as_array()
        .unwrap()
        .iter()
        .find(|each| each["name"] == "agent");
    assert_eq!(agent.unwrap()["restartCount"], 0, "the agent must have lived on");
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn a_lone_coordinator_whose_pod_is_deleted_goes_on_with_its_jobs() {
    let scene = Scene::new("coordinator");
    start_emulated(&scene, 2);
    let job = submit(&scene, &slow_job("unmoved"));
    await_middle(&job);
    let selector = "proving.rs/cluster=prover,app.kubernetes.io/component=coordinator";
    kubectl(&[
        "delete",
        "pods",
        "--namespace",
        scene.namespace(),
        "--selector",
        selector,
        "--grace-period=0",
        "--force",
    ]);
    let done = job.succeeded(JOB_FINISHED);
    assert_eq!(done["status"]["emulated"], true);
    expect_nothing_lost(&done);
    await_workers(&scene, "cpu", 2, POD_REPLACED);
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn an_image_that_is_not_there_is_told_in_the_cluster_and_the_other_group_works() {
    let scene = Scene::new("no-image");
    let cluster = Cluster::emulated(&scene)
        .backend(json!({"name": "missing", "system": "emulated", "image": image("no-such-image")}))
        .group("good", "emulated", json!({}))
        .group("bad", "missing", json!({}));
    crate::support::kubectl::apply(cluster.manifest());
    await_cluster(
        &scene,
        "the missing image is told",
        Duration::from_secs(60),
        |cluster| {
            let groups = cluster["status"]["groups"].as_array();
            groups
                .into_iter()
                .flatten()
                .any(|group| group["name"] == "bad" && group["reason"] == "ImagePullFailed")
        },
    );
    await_workers(&scene, "good", 1, POD_REPLACED);
    submit(&scene, &Model::new(2).manifest("works")).succeeded(JOB_FINISHED);
    scene.finish();
}

#[test]
fn a_bad_program_fails_its_job_with_the_provers_own_words_and_no_other() {
    let scene = Scene::new("bad-program");
    start_emulated(&scene, 1);
    let bad = submit(
        &scene,
        &Model::new(1)
            .manifest("bad")
            .spec("input", json!({"text": "{\"segments\": 0}"})),
    );
    let good = submit(&scene, &Model::new(2).manifest("good"));
    let failed = bad.failed("InvalidModel", JOB_FINISHED);
    assert_eq!(failed["status"]["failure"]["invalidInput"], true);
    assert!(
        failed["status"]["failure"]["message"]
            .as_str()
            .unwrap()
            .contains("segments is 0")
    );
    good.succeeded(JOB_FINISHED);
    expect_no_leaked_artifacts(&scene, &[&bad, &good]);
    scene.finish();
}

#[test]
fn a_namespace_deleted_while_it_proves_goes_and_takes_its_jobs_along() {
    let mut scene = Scene::new("deleted");
    let guest = scene.another_namespace("guest");
    let cluster =
        Cluster::emulated(&scene)
            .of_all_namespaces(&scene)
            .group("cpu", "emulated", json!({"replicas": 2}));
    start_cluster(&scene, &cluster);
    let theirs = submit_in(&scene, &guest, &slow_job("theirs"));
    let ours = submit(&scene, &slow_job("ours"));
    theirs.wait("the guest's job runs", JOB_RUNNING, |job| {
        Applied::done(job, "Prove") >= 1
    });
    kubectl(&["delete", "namespace", &guest, "--wait=false"]);
    await_gone(&guest, "namespace", &guest, Duration::from_secs(90));
    ours.succeeded(JOB_FINISHED);
    expect_no_leaked_artifacts(&scene, &[&ours]);
    scene.finish();
}

#[test]
fn a_prover_cluster_that_is_deleted_while_it_proves_finishes_its_jobs_first() {
    let scene = Scene::new("draining");
    start_emulated(&scene, 2);
    let job = submit(&scene, &slow_job("last"));
    await_middle(&job);
    kubectl(&[
        "delete",
        "provercluster",
        "prover",
        "--namespace",
        scene.namespace(),
        "--wait=false",
    ]);
    await_cluster(
        &scene,
        "it says that it finishes its jobs",
        Duration::from_secs(30),
        |cluster| condition(cluster, "Draining").is_some_and(|draining| draining["status"] == "True"),
    );
    job.succeeded(JOB_FINISHED);
    await_gone(
        scene.namespace(),
        "provercluster",
        "prover",
        Duration::from_secs(90),
    );
    scene.finish();
}

#[test]
fn a_worker_that_is_told_to_leave_finishes_what_it_runs_the_planner_too() {
    let scene = Scene::new("leaves");
    // Longer than the whole job takes: a planner of many segments runs almost as long as its job.
    let group = json!({"replicas": 2, "drainSeconds": 120});
    start_cluster(&scene, &Cluster::emulated(&scene).group("cpu", "emulated", group));
    let job = submit(&scene, &slow_job("kept"));
    await_middle(&job);
    let pods = workers(&scene, "cpu");
    let planner = pods
        .iter()
        .find(|pod| runs_planner(pod))
        .expect("a worker runs the planner");
    kubectl(&[
        "delete",
        "pod",
        name(planner),
        "--namespace",
        scene.namespace(),
        "--wait=false",
    ]);
    let done = job.succeeded(JOB_FINISHED);
    expect_nothing_lost(&done);
    scene.finish();
}
