//! Things that break while jobs run: no job is lost, and nothing that was finished is done again.

use std::time::Duration;

use prover_e2e::{Manifest, Model};
use serde_json::json;

use crate::support::kubectl::{await_gone, await_object, kubectl};
use crate::support::objects::{Cluster, image};
use crate::support::scene::{OPERATOR, OPERATOR_NAMESPACE, Scene, await_operator, condition};
use crate::support::steps::{
    Applied, JOB_FINISHED, JOB_RUNNING, POD_REPLACED, attempts, await_cluster, await_workers,
    expect_no_leaked_artifacts, expect_only_kept, kill_pod, name, start_cluster, submit, workers,
};

/// Segments of the jobs in which something breaks.
const SEGMENTS: u64 = 48;

/// A job that lasts long enough to be hit in the middle: about 25 seconds on two workers,
/// since status tells of progress every 10 seconds.
fn slow_job(name: &str) -> Manifest {
    Model::new(SEGMENTS)
        .duration("prove", 800)
        .duration("lift", 100)
        .duration("join", 100)
        .manifest(name)
}

fn await_middle(job: &Applied) {
    job.wait("some segments are proved", JOB_RUNNING, |job| {
        Applied::done(job, "Prove") >= 3
    });
}

#[test]
fn a_worker_pod_deleted_mid_segment_costs_only_what_it_ran() {
    let scene = Scene::new("pod-killed");
    start_cluster(
        &scene,
        &Cluster::emulated(&scene).group("cpu", "emulated", json!({"replicas": 2})),
    );
    let job = submit(&scene, &slow_job("survives"));
    await_middle(&job);
    kill_pod(&scene, name(&workers(&scene, "cpu")[0]));
    let done = job.succeeded(JOB_FINISHED);
    // What it ran, what it had fetched ahead, and perhaps the planner.
    let lost = attempts(&done, "lost");
    assert!(
        (1..=3).contains(&lost),
        "{lost} attempts were lost with one worker"
    );
    assert_eq!(
        attempts(&done, "failed"),
        0,
        "a lost pod is not the job's own failure"
    );
    await_workers(&scene, "cpu", 2, POD_REPLACED);
    expect_no_leaked_artifacts(&scene, &[&job]);
    job.delete(Duration::from_secs(60));
    expect_only_kept(&scene, &done);
    scene.finish();
}

#[test]
fn a_backend_killed_for_memory_costs_its_attempt_and_never_the_worker() {
    let scene = Scene::new("memory");
    start_cluster(
        &scene,
        &Cluster::emulated(&scene).group("cpu", "emulated", json!({})),
    );
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
fn jobs_run_to_their_end_while_the_operator_is_absent() {
    let scene = Scene::alone("no-operator");
    start_cluster(
        &scene,
        &Cluster::emulated(&scene).group("cpu", "emulated", json!({"replicas": 2})),
    );
    let before = submit(&scene, &slow_job("before"));
    await_middle(&before);
    kubectl(&[
        "scale",
        "deployment",
        OPERATOR,
        "--namespace",
        OPERATOR_NAMESPACE,
        "--replicas=0",
    ]);
    await_object(
        OPERATOR_NAMESPACE,
        "deployment",
        &["--field-selector", "metadata.name=prover-operator"],
        "the operator is gone",
        POD_REPLACED,
        |deployment| deployment["status"]["replicas"].as_u64().unwrap_or(0) == 0,
    );
    let during = submit(&scene, &slow_job("during"));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        before.succeeded(JOB_FINISHED);
        during.succeeded(JOB_FINISHED);
    }));
    // Others need the operator, however this went.
    kubectl(&[
        "scale",
        "deployment",
        OPERATOR,
        "--namespace",
        OPERATOR_NAMESPACE,
        "--replicas=2",
    ]);
    await_operator();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    expect_no_leaked_artifacts(&scene, &[&before, &during]);
    scene.finish();
}

#[test]
fn a_coordinator_that_is_killed_begins_its_jobs_again_and_says_so() {
    let scene = Scene::new("coordinator");
    start_cluster(
        &scene,
        &Cluster::emulated(&scene).group("cpu", "emulated", json!({"replicas": 2})),
    );
    let job = submit(&scene, &slow_job("again"));
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
    crate::support::steps::await_event(
        scene.namespace(),
        "again",
        "CoordinatorRestarted",
        Duration::from_secs(10),
    );
    assert_eq!(done["status"]["emulated"], true);
    await_workers(&scene, "cpu", 2, POD_REPLACED);
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn a_store_that_is_away_for_half_a_minute_loses_no_job() {
    let scene = Scene::alone("no-store");
    start_cluster(
        &scene,
        &Cluster::emulated(&scene).group("cpu", "emulated", json!({"replicas": 2})),
    );
    let job = submit(&scene, &slow_job("patient"));
    await_middle(&job);
    kubectl(&[
        "scale",
        "deployment",
        "minio",
        "--namespace",
        "minio",
        "--replicas=0",
    ]);
    // The time of the outage is what is tested, so nothing can be awaited in its place.
    std::thread::sleep(Duration::from_secs(30));
    kubectl(&[
        "scale",
        "deployment",
        "minio",
        "--namespace",
        "minio",
        "--replicas=1",
    ]);
    kubectl(&[
        "rollout",
        "status",
        "deployment",
        "minio",
        "--namespace",
        "minio",
        "--timeout",
        "60s",
    ]);
    job.succeeded(JOB_FINISHED);
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn a_restarted_api_server_costs_nothing() {
    let scene = Scene::alone("no-api");
    start_cluster(
        &scene,
        &Cluster::emulated(&scene).group("cpu", "emulated", json!({"replicas": 2})),
    );
    let job = submit(&scene, &slow_job("unmoved"));
    await_middle(&job);
    let script = prover_e2e::workspace().join("e2e/cluster/component.sh");
    let restarted = std::process::Command::new(script)
        .args(["restart", "kube-apiserver"])
        .status()
        .unwrap();
    assert!(
        restarted.success(),
        "component.sh restart kube-apiserver: {restarted}"
    );
    let done = job.succeeded(JOB_FINISHED);
    assert_eq!(
        (attempts(&done, "failed"), attempts(&done, "lost")),
        (0, 0),
        "{:#}",
        done["status"]
    );
    assert!(
        workers(&scene, "cpu").iter().all(|pod| {
            pod["status"]["containerStatuses"]
                .as_array()
                .unwrap()
                .iter()
                .all(|each| each["restartCount"] == 0)
        }),
        "workers must not notice"
    );
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn a_drained_node_loses_no_attempt_and_the_budget_keeps_the_last_worker() {
    let scene = Scene::alone("drain");
    start_cluster(
        &scene,
        &Cluster::emulated(&scene).group("cpu", "emulated", json!({"replicas": 2})),
    );
    let job = submit(&scene, &slow_job("moves"));
    await_middle(&job);
    let node = kubectl(&["get", "nodes", "--output", "jsonpath={.items[0].metadata.name}"]);
    let selector = "--pod-selector=proving.rs/cluster=prover,app.kubernetes.io/component=worker";
    let arguments = [
        "drain",
        &node,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        selector,
        "--timeout=20s",
    ];
    let drained = crate::support::kubectl::command(&arguments).output().unwrap();
    kubectl(&["uncordon", &node]);
    // There is no other node, so the second worker may not go before the first has a successor.
    let said = String::from_utf8_lossy(&drained.stderr);
    assert!(said.contains("disruption budget"), "kubectl drain: {said}");
    let done = job.succeeded(JOB_FINISHED);
    assert_eq!(
        attempts(&done, "failed"),
        0,
        "an eviction is not the job's own failure: {:#}",
        done["status"]
    );
    // A planner lives as long as its job, so it may not end within the time to drain.
    assert!(
        attempts(&done, "lost") <= 1,
        "an evicted worker gives back what it has not finished: {:#}",
        done["status"]
    );
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
    start_cluster(
        &scene,
        &Cluster::emulated(&scene).group("cpu", "emulated", json!({})),
    );
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
    let cluster = Cluster::emulated(&scene)
        .spec(
            "allowedNamespaces",
            json!({"from": "Selector", "selector": {"matchLabels": {"proving.rs/e2e": scene.label()}}}),
        )
        .group("cpu", "emulated", json!({"replicas": 2}));
    start_cluster(&scene, &cluster);
    let theirs = crate::support::steps::submit_in(&scene, &guest, &slow_job("theirs"));
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
    start_cluster(
        &scene,
        &Cluster::emulated(&scene).group("cpu", "emulated", json!({"replicas": 2})),
    );
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
fn a_worker_that_is_told_to_leave_finishes_what_it_runs() {
    let scene = Scene::new("leaves");
    start_cluster(
        &scene,
        &Cluster::emulated(&scene).group("cpu", "emulated", json!({"replicas": 2, "drainSeconds": 20})),
    );
    let job = submit(&scene, &slow_job("kept"));
    await_middle(&job);
    let pods = workers(&scene, "cpu");
    kubectl(&[
        "delete",
        "pod",
        name(&pods[0]),
        "--namespace",
        scene.namespace(),
        "--wait=false",
    ]);
    let done = job.succeeded(JOB_FINISHED);
    // A planner lives as long as its job, so it may not end within the time to drain.
    assert_eq!(attempts(&done, "failed"), 0, "{:#}", done["status"]);
    assert!(attempts(&done, "lost") <= 1, "{:#}", done["status"]);
    scene.finish();
}
