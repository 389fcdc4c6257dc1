//! Scenarios that prove with SP1 in pods. A prover takes up to 10 GB, so one scene runs at a time; what needs no pods is shown
//! in local mode (`e2e/tests/sp1.rs`).

use std::time::Duration;

use prover_e2e::{Manifest, sample_program};
use serde_json::{Value, json};

use crate::support::coordinator;
use crate::support::kubectl::apply;
use crate::support::node;
use crate::support::objects::{Cluster, image};
use crate::support::proofs::{base64, expect_accepted, keep_for_jobs};
use crate::support::scene::{Scene, is_true};
use crate::support::steps::{
    Applied, attempts, await_cluster, await_ready, expect_no_leaked_artifacts, expect_nothing_lost, kill_pod,
    name, observed, restarts, submit, workers,
};

/// Longest time until a worker has its keys.
const KEYS: Duration = Duration::from_secs(900);
/// Longest time of a proof.
const PROOF: Duration = Duration::from_secs(3600);
/// Longest time until another coordinator leads.
const TAKEOVER: Duration = Duration::from_secs(60);

const GROUP: &str = "prover";
/// Its job hashes 10 KiB: two shards, of the program and of the memory.
const PROGRAM: &str = "sha2";

/// Starts a ProverCluster with one worker, and submits a job that makes its proof.
fn start(scene: &Scene, coordinators: u64) -> Applied {
    let resources = json!({"cpu": "100m", "memory": "12Gi"});
    let cluster = Cluster::new(scene)
        .backend(json!({"name": "sp1", "system": "sp1", "image": image("prover-backend-sp1")}))
        .group(
            GROUP,
            "sp1",
            json!({"resources": resources, "exchangeSize": "2Gi"}),
        )
        .coordinators(coordinators);
    apply(cluster.manifest());
    await_cluster(scene, "a worker has its keys", KEYS, |cluster| {
        is_true(cluster, "Ready") && cluster["status"]["workers"]["connected"] == 1 && observed(cluster)
    });
    let program = sample_program(&format!("sp1/{PROGRAM}"));
    keep_for_jobs(scene.namespace(), PROGRAM, "program", &program);
    let manifest = Manifest::sp1("block", "Core", &program)
        .spec(
            "program",
            json!({"configMap": {"name": PROGRAM, "key": "program"}}),
        )
        .spec("input", json!({"inline": base64(&[7; 10_240])}))
        .spec("maxCycles", json!(10_000_000));
    submit(scene, &manifest)
}

/// Downloads the proof that a job claims, and has the command line verify it.
fn expect_verified(job: &Value) {
    let program = sample_program(&format!("sp1/{PROGRAM}"));
    expect_accepted(job, &["--system", "sp1", "--program", program.to_str().unwrap()]);
}

fn shards(job: &Value) -> u64 {
    Applied::done(job, "Prove")
}

/// Else the fault came too late to show anything.
fn expect_unfinished(job: &Applied) {
    let job = job.now();
    assert!(!is_true(&job, "Finished"), "{:#}", job["status"]);
}

#[test]
fn worker_death_requeue() {
    let scene = Scene::alone("sp1-death");
    let job = start(&scene, 1);
    let before = job.wait("a shard is proved", PROOF, |job| shards(job) >= 1);
    kill_pod(&scene, name(&workers(&scene, GROUP)[0]));
    expect_unfinished(&job);
    await_ready(&scene, GROUP, 1, KEYS);
    let done = job.finished(PROOF);
    expect_verified(&done);
    assert_eq!(attempts(&done, "failed"), 0, "{:#}", done["status"]);
    scene.note(&format!(
        "{} shards before, {} in all",
        shards(&before),
        shards(&done)
    ));
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn coordinator_restart() {
    let scene = Scene::alone("sp1-coordinator");
    let job = start(&scene, 2);
    let leader = coordinator::await_leader(&scene, 0, TAKEOVER);
    job.wait("a shard is proved", PROOF, |job| shards(job) >= 1);
    node::signal_in_pod(&leader.pod, "prover-operator", "KILL");
    expect_unfinished(&job);
    coordinator::await_lead(&scene, &leader, TAKEOVER);
    let done = job.finished(PROOF);
    expect_verified(&done);
    expect_nothing_lost(&done);
    assert_eq!(restarts(&workers(&scene, GROUP)[0]), 0);
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn s3_artifacts() {
    let scene = Scene::alone("sp1-s3");
    let job = start(&scene, 1);
    let done = job.succeeded(PROOF);
    assert_eq!(shards(&done), 2);
    expect_verified(&done);
    assert!(
        done["status"]["proof"]["uri"]
            .as_str()
            .unwrap()
            .starts_with("s3://")
    );
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}
