//! Native scaling: from zero and back.

use std::time::Duration;

use prover_e2e::Model;
use serde_json::json;

use crate::support::kubectl::{apply, get, list};
use crate::support::objects::Cluster;
use crate::support::scene::{Scene, is_true};
use crate::support::steps::{JOB_FINISHED, await_cluster, await_workers, expect_nothing_lost, name, submit};

/// From work to a connected worker: the scaler's decision, a pod, its start.
const WORKER_THERE: Duration = Duration::from_secs(60);

#[test]
fn workers_come_from_zero_when_work_comes_and_go_again() {
    let scene = Scene::new("scaling");
    let cluster = Cluster::emulated(&scene).group(
        "elastic",
        "emulated",
        json!({
            "replicas": null,
            "scaling": {"minReplicas": 0, "maxReplicas": 2, "targetSeconds": 5, "cooldownSeconds": 3},
        }),
    );
    apply(cluster.manifest());
    await_cluster(
        &scene,
        "it is ready without workers",
        Duration::from_secs(60),
        |cluster| is_true(cluster, "Ready"),
    );
    let deployments = list(
        scene.namespace(),
        "deployments",
        "proving.rs/worker-group=elastic",
    );
    assert_eq!(deployments.len(), 1);
    assert_eq!(
        deployments[0]["spec"]["replicas"], 0,
        "nothing waits, so no worker shall run"
    );
    let job = submit(&scene, &Model::new(16).duration("prove", 1_000).manifest("wakes"));
    await_workers(&scene, "elastic", 2, WORKER_THERE);
    let done = job.succeeded(JOB_FINISHED);
    expect_nothing_lost(&done);
    await_workers(&scene, "elastic", 0, Duration::from_secs(60));
    let deployment = get(scene.namespace(), "deployment", name(&deployments[0])).unwrap();
    assert_eq!(deployment["spec"]["replicas"], 0);
    scene.finish();
}

#[test]
fn each_backend_container_of_a_group_on_gpus_gets_one() {
    let scene = Scene::new("gpus");
    let cluster =
        Cluster::emulated(&scene).group("gpu", "emulated", json!({"device": {"gpu": {"count": 2}}}));
    crate::support::steps::start_cluster(&scene, &cluster);
    let pods = crate::support::steps::workers(&scene, "gpu");
    let containers = pods[0]["spec"]["containers"].as_array().unwrap();
    let with_gpu = containers
        .iter()
        .filter(|each| each["resources"]["limits"]["nvidia.com/gpu"] == "1")
        .count();
    assert_eq!(with_gpu, 2, "one GPU for each of two backend containers");
    scene.finish();
}
