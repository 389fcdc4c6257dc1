//! Scenarios in which nothing depends on what is proved.

use std::time::Duration;

use prover_e2e::Model;
use serde_json::{Value, json};

use crate::support::kubectl::{await_gone, kubectl, list, patch};
use crate::support::node;
use crate::support::objects::{CLUSTER, Cluster};
use crate::support::scene::{Scene, await_api_server, is_true};
use crate::support::steps::{
    Applied, CLUSTER_READY, JOB_FINISHED, JOB_RUNNING, POD_REPLACED, await_cluster, await_middle,
    await_ready, await_workers, expect_no_leaked_artifacts, expect_nothing_lost, name, restarts, slow_job,
    start_cluster, start_emulated, submit, submit_all, workers,
};

/// Longest time from a word in the manifest to its effect.
const HEEDED: Duration = Duration::from_secs(30);
/// How long an end must hold; that time is what is tested, so nothing can be awaited in its place.
const HOLDS: Duration = Duration::from_secs(10);
/// Longest time until every process has gone that a namespace had.
const SHUT_DOWN: Duration = Duration::from_secs(120);

/// Whether nothing of the scene's cluster waits or runs.
fn drained(cluster: &Value) -> bool {
    let queue = &cluster["status"]["queue"];
    ["waitingJobs", "runningJobs"]
        .iter()
        .all(|count| queue[count].as_u64().unwrap_or(0) == 0)
}

/// Four small jobs of so many segments each.
fn submit_four(scene: &Scene, segments: u64) -> Vec<Applied> {
    let manifests: Vec<_> = (0..4)
        .map(|number| {
            let model = Model::new(segments).duration("prove", 500);
            model.manifest(&format!("fib-{number}"))
        })
        .collect();
    submit_all(
        scene,
        manifests.iter().map(|manifest| (scene.namespace(), manifest)),
    )
}

#[test]
fn multi_worker() {
    let scene = Scene::new("sp1-multi");
    start_emulated(&scene, 3);
    let jobs = submit_four(&scene, 8);
    for job in &jobs {
        job.succeeded(JOB_FINISHED);
    }
    await_workers(&scene, "cpu", 3, POD_REPLACED);
    expect_no_leaked_artifacts(&scene, &jobs.iter().collect::<Vec<_>>());
    scene.finish();
}

#[test]
fn mixed_load() {
    let scene = Scene::new("sp1-mixed");
    start_emulated(&scene, 2);
    let block = submit(&scene, &slow_job("block"));
    await_middle(&block);
    let small = submit_four(&scene, 2);
    for job in &small {
        job.succeeded(JOB_FINISHED);
    }
    block.succeeded(JOB_FINISHED);
    scene.finish();
}

#[test]
fn cancel_pending() {
    let scene = Scene::new("sp1-cancel-pending");
    start_cluster(
        &scene,
        &Cluster::emulated(&scene).group("cpu", "emulated", json!({"replicas": 0})),
    );
    let job = submit(&scene, &slow_job("unwanted"));
    job.wait("it waits", JOB_RUNNING, |job| job["status"]["phase"] == "Queued");
    cancel_and_hold(&scene, &job);
    scene.finish();
}

#[test]
fn cancel_active() {
    let scene = Scene::new("sp1-cancel-active");
    start_emulated(&scene, 2);
    let job = submit(&scene, &slow_job("unwanted"));
    await_middle(&job);
    cancel_and_hold(&scene, &job);
    submit(&scene, &Model::new(2).manifest("next")).succeeded(JOB_FINISHED);
    scene.finish();
}

fn cancel_and_hold(scene: &Scene, job: &Applied) {
    patch(
        &job.namespace,
        "proofjob",
        &job.name,
        &json!({"spec": {"cancel": true}}),
    );
    let done = job.finished(HEEDED);
    assert!(is_true(&done, "Cancelled"), "{:#}", done["status"]);
    await_cluster(scene, "nothing waits or runs", HEEDED, drained);
    std::thread::sleep(HOLDS);
    let after = job.now();
    assert_eq!(after["status"]["phase"], done["status"]["phase"]);
    assert_eq!(
        after["status"]["attempts"], done["status"]["attempts"],
        "an attempt began after the end"
    );
    expect_no_leaked_artifacts(scene, &[job]);
}

#[test]
fn worker_restart() {
    let scene = Scene::new("sp1-worker-restart");
    start_emulated(&scene, 1);
    submit(&scene, &Model::new(4).manifest("a")).succeeded(JOB_FINISHED);
    let before = workers(&scene, "cpu");
    kubectl(&[
        "delete",
        "pod",
        name(&before[0]),
        "--namespace",
        scene.namespace(),
        "--wait=true",
    ]);
    let after = await_ready(&scene, "cpu", 1, CLUSTER_READY);
    assert_ne!(name(&before[0]), name(&after[0]));
    let done = submit(&scene, &Model::new(4).manifest("b")).succeeded(JOB_FINISHED);
    expect_nothing_lost(&done);
    scene.finish();
}

/// Nothing but Kubernetes' API keeps what users see: a proof that ends while it is away is told when it is back.
#[test]
fn api_outage() {
    let scene = Scene::alone("sp1-api-outage");
    start_emulated(&scene, 2);
    let job = submit(&scene, &slow_job("unmoved"));
    await_middle(&job);
    node::component("stop", "kube-apiserver");
    // Longer than the rest of the job: its end falls into the outage.
    std::thread::sleep(Duration::from_secs(45));
    node::component("start", "kube-apiserver");
    await_api_server();
    let done = job.succeeded(Duration::from_secs(180));
    expect_nothing_lost(&done);
    assert!(
        workers(&scene, "cpu").iter().all(|pod| restarts(pod) == 0),
        "workers must not notice"
    );
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn shutdown_drain() {
    let scene = Scene::new("sp1-shutdown");
    start_emulated(&scene, 2);
    let job = submit(&scene, &slow_job("running"));
    job.wait("it runs", JOB_RUNNING, |job| Applied::done(job, "Prove") >= 1);
    let namespace = scene.namespace();
    kubectl(&[
        "delete",
        "provercluster",
        CLUSTER,
        "--namespace",
        namespace,
        "--wait=false",
    ]);
    kubectl(&["delete", "namespace", namespace, "--wait=false"]);
    await_gone(namespace, "namespace", namespace, SHUT_DOWN);
    assert!(
        list(namespace, "pods", "").is_empty(),
        "a process outlived its namespace"
    );
    scene.finish();
}
