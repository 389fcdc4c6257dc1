//! Scenarios in which nothing depends on what is proved.

use std::time::Duration;

use prover_e2e::Model;
use serde_json::{Value, json};

use crate::support::kubectl::{apply, await_gone, kubectl, list, patch};
use crate::support::node;
use crate::support::objects::{CLUSTER, Cluster};
use crate::support::scene::{Scene, await_api_server, is_true};
use crate::support::steps::{
    Applied, CLUSTER_READY, JOB_FINISHED, JOB_RUNNING, POD_REPLACED, attempts, await_cluster, await_middle,
    await_ready, await_workers, expect_no_leaked_artifacts, name, restarts, slow_job, start_cluster,
    start_emulated, submit, submit_all, workers,
};
use crate::support::store;

/// Longest time from a word in the manifest to its effect.
const HEEDED: Duration = Duration::from_secs(30);
/// How long an end must hold; that time is what is tested, so nothing can be awaited in its place.
const HOLDS: Duration = Duration::from_secs(10);
/// Longest time until every process has gone that a namespace had.
const SHUT_DOWN: Duration = Duration::from_secs(60);

/// Whether nothing of the scene's cluster waits or runs.
fn drained(cluster: &Value) -> bool {
    let queue = &cluster["status"]["queue"];
    ["waitingJobs", "runningJobs"]
        .iter()
        .all(|count| queue[count].as_u64().unwrap_or(0) == 0)
}

#[test]
fn multi_worker() {
    let scene = Scene::new("sp1-multi");
    start_emulated(&scene, 3);
    let manifests: Vec<_> = (0..4)
        .map(|number| {
            Model::new(8)
                .duration("prove", 500)
                .manifest(&format!("fib-{number}"))
        })
        .collect();
    let jobs = submit_all(
        &scene,
        manifests.iter().map(|manifest| (scene.namespace(), manifest)),
    );
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
    let manifests: Vec<_> = (0..4)
        .map(|number| {
            Model::new(2)
                .duration("prove", 500)
                .manifest(&format!("fib-{number}"))
        })
        .collect();
    let small = submit_all(
        &scene,
        manifests.iter().map(|manifest| (scene.namespace(), manifest)),
    );
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
    assert_eq!(
        (attempts(&done, "failed"), attempts(&done, "lost")),
        (0, 0),
        "{:#}",
        done["status"]
    );
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
    assert_eq!(
        (attempts(&done, "failed"), attempts(&done, "lost")),
        (0, 0),
        "{:#}",
        done["status"]
    );
    assert!(
        workers(&scene, "cpu").iter().all(|pod| restarts(pod) == 0),
        "workers must not notice"
    );
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn shutdown_drain() {
    let mut scene = Scene::new("sp1-shutdown");
    let whole = scene.another_namespace("whole");
    apply(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "minio", "namespace": whole},
        "data": store::credentials(),
    }));
    let cluster = Cluster::emulated(&scene).group("cpu", "emulated", json!({"replicas": 2}));
    let mut cluster = cluster.manifest().clone();
    cluster["metadata"]["namespace"] = json!(whole);
    apply(&cluster);
    let mut job: Value = serde_json::from_str(&slow_job("running").text()).unwrap();
    job["metadata"]["namespace"] = json!(whole);
    job["spec"]["clusterRef"] = json!({"name": CLUSTER});
    apply(&job);
    let job = Applied {
        namespace: whole.clone(),
        name: "running".to_owned(),
    };
    job.wait("it runs", CLUSTER_READY, |job| Applied::done(job, "Prove") >= 1);
    kubectl(&[
        "delete",
        "provercluster",
        CLUSTER,
        "--namespace",
        &whole,
        "--wait=false",
    ]);
    kubectl(&["delete", "namespace", &whole, "--wait=false"]);
    await_gone(&whole, "namespace", &whole, SHUT_DOWN * 2);
    assert!(
        list(&whole, "pods", "").is_empty(),
        "a process outlived its namespace"
    );
    scene.finish();
}
