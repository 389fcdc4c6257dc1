//! Something that the whole cluster shares is away while jobs run: the operator, the store, the API server, a node.
//!
//! These scenes are alone in the cluster. The name of this module comes last, so that they follow one upon the other
//! after all that run side by side.

use std::time::Duration;

use serde_json::json;

use crate::support::kubectl::{await_object, command, kubectl};
use crate::support::node;
use crate::support::proofs::{Kind, LONG, expect_verified, fibonacci, risc0};
use crate::support::scene::{OPERATOR, OPERATOR_NAMESPACE, Scene, await_operator};
use crate::support::steps::{
    Applied, JOB_FINISHED, POD_REPLACED, REAL_PROOF, attempts, await_middle, await_rollout, await_workers,
    expect_no_leaked_artifacts, expect_nothing_lost, name, restarts, runs_planner, scale, slow_job,
    start_cluster, start_emulated, submit, workers,
};

#[test]
fn jobs_run_to_their_end_while_the_operator_is_absent_and_a_real_proof_verifies() {
    let scene = Scene::alone("no-operator");
    let cluster =
        risc0(&scene, Kind::Composite, 1)
            .emulated_backend()
            .group("cpu", "emulated", json!({"replicas": 2}));
    start_cluster(&scene, &cluster);
    let before = submit(
        &scene,
        &fibonacci(scene.namespace(), "before", Kind::Composite, LONG),
    );
    before.wait("a segment is proved", REAL_PROOF, |job| {
        Applied::done(job, "Prove") >= 1
    });
    scale_operator(0);
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
        during.succeeded(JOB_FINISHED);
        before.succeeded(REAL_PROOF)
    }));
    // Others need the operator, however this went.
    scale_operator(2);
    await_operator();
    match outcome {
        Ok(done) => expect_verified(&done, "fibonacci"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
    expect_no_leaked_artifacts(&scene, &[&before, &during]);
    scene.finish();
}

fn scale_operator(replicas: u32) {
    scale(OPERATOR_NAMESPACE, OPERATOR, replicas);
}

#[test]
fn a_store_that_is_away_for_half_a_minute_loses_no_job_and_no_real_proof() {
    let scene = Scene::alone("no-store");
    let cluster =
        risc0(&scene, Kind::Composite, 1)
            .emulated_backend()
            .group("cpu", "emulated", json!({"replicas": 2}));
    start_cluster(&scene, &cluster);
    let real = submit(
        &scene,
        &fibonacci(scene.namespace(), "real", Kind::Composite, LONG),
    );
    real.wait("a segment is proved", REAL_PROOF, |job| {
        Applied::done(job, "Prove") >= 1
    });
    let emulated = submit(&scene, &slow_job("emulated"));
    await_middle(&emulated);
    scale("minio", "minio", 0);
    // The time of the outage is what is tested, so nothing can be awaited in its place.
    std::thread::sleep(Duration::from_secs(30));
    scale("minio", "minio", 1);
    await_rollout("minio", "minio");
    emulated.succeeded(JOB_FINISHED);
    expect_verified(&real.succeeded(REAL_PROOF), "fibonacci");
    expect_no_leaked_artifacts(&scene, &[&real, &emulated]);
    scene.finish();
}

#[test]
fn a_restarted_api_server_costs_nothing() {
    let scene = Scene::alone("no-api");
    start_emulated(&scene, 2);
    let job = submit(&scene, &slow_job("unmoved"));
    await_middle(&job);
    node::component("restart", "kube-apiserver");
    let done = job.succeeded(JOB_FINISHED);
    expect_nothing_lost(&done);
    assert!(
        workers(&scene, "cpu").iter().all(|pod| restarts(pod) == 0),
        "workers must not notice"
    );
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn a_drained_node_loses_nothing_but_its_planner_and_the_budget_keeps_the_last_worker() {
    let scene = Scene::alone("drain");
    start_emulated(&scene, 2);
    let job = submit(&scene, &slow_job("moves"));
    await_middle(&job);
    let before = workers(&scene, "cpu");
    let planner = before.iter().find(|pod| runs_planner(pod)).map(name);
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
    let drained = command(&arguments).output().unwrap();
    kubectl(&["uncordon", &node]);
    // There is no other node, so the second worker may not go before the first has a successor.
    let said = String::from_utf8_lossy(&drained.stderr);
    assert!(said.contains("disruption budget"), "kubectl drain: {said}");
    let after = workers(&scene, "cpu");
    let evicted: Vec<_> = before
        .iter()
        .map(name)
        .filter(|pod| after.iter().all(|other| name(other) != *pod))
        .collect();
    assert_eq!(evicted.len(), 1, "{evicted:?} were evicted");
    let done = job.succeeded(JOB_FINISHED);
    assert_eq!(
        attempts(&done, "failed"),
        0,
        "an eviction is not the job's own failure: {:#}",
        done["status"]
    );
    // Workers have 5 s to drain here. Every other task takes less; a planner runs almost as long as its job.
    let may_be_lost = u64::from(planner == Some(evicted[0]));
    assert!(
        attempts(&done, "lost") <= may_be_lost,
        "an evicted worker gives back what it has not started, and finishes what it can: {:#}",
        done["status"]
    );
    await_workers(&scene, "cpu", 2, POD_REPLACED);
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}
