//! Coordinators that end while jobs run: another one leads, running attempts go on, nothing that was finished is done
//! again.

use std::time::{Duration, Instant};

use prover_e2e::{Manifest, Model};
use serde_json::{Value, json};

use crate::support::coordinator::{self, Leader};
use crate::support::node;
use crate::support::objects::Cluster;
use crate::support::proofs::{Kind, LONG, expect_verified, fibonacci, risc0};
use crate::support::scene::{Scene, await_api_server, is_true, random_pause};
use crate::support::steps::{
    Applied, JOB_FINISHED, REAL_PROOF, attempts, await_middle, await_rollout, eventually,
    expect_no_leaked_artifacts, restarts, scale, start_cluster, submit, workers,
};

/// Longest time from the end of a leader to another one, where the machine does much else: its Lease of 3 s runs out,
/// and the log is read.
const TAKEOVER: Duration = Duration::from_secs(30);

/// Longest time until the ProverCluster's status tells of a new leader: the operator notices a stream that has gone silent
/// after 20 s.
const TOLD: Duration = Duration::from_secs(90);

/// Between two kills, at most.
const NEXT_KILL: Duration = Duration::from_secs(6);

/// How long the store or the API server is away; that time is what is tested, so nothing can be awaited in its place.
const OUTAGE: Duration = Duration::from_secs(15);

/// A job that three leaders don't see the end of.
fn long_job(name: &str) -> Manifest {
    Model::new(96)
        .duration("prove", 800)
        .duration("lift", 100)
        .duration("join", 100)
        .manifest(name)
}

/// Starts a ProverCluster with two coordinators, and gives the one that leads.
fn start_with_standby(scene: &Scene, cluster: Cluster) -> Leader {
    start_cluster(scene, &cluster.coordinators(2));
    coordinator::await_leader(scene, None, TOLD)
}

fn two_emulated_workers(scene: &Scene) -> Cluster {
    Cluster::emulated(scene).group("cpu", "emulated", json!({"replicas": 2}))
}

fn note_next(scene: &Scene, since: &str, moment: Instant) {
    let seconds = moment.elapsed().as_secs_f64();
    scene.note(&format!("{seconds:6.1} s from the {since} to the next leader"));
}

/// Kills the process of a coordinator, as a lost machine or the kernel does.
fn kill(leader: &Leader) {
    node::signal(&leader.pod, "coordinator", "prover-operator", "KILL");
}

/// Kills the leader, waits for the next one, and notes the times between.
fn kill_and_await_next(scene: &Scene, leader: &Leader, job: &Applied) -> Leader {
    let killed = Instant::now();
    kill(leader);
    let next = coordinator::await_lead(scene, leader, TAKEOVER);
    note_next(scene, "kill of a leader", killed);
    eventually(TAKEOVER, || match coordinator::assignments_at(&next) {
        0.0 if !is_true(&job.now(), "Finished") => Err("it has sent no attempt to a worker".to_owned()),
        _ => Ok(()),
    });
    let seconds = killed.elapsed().as_secs_f64();
    scene.note(&format!(
        "{seconds:6.1} s from the kill of a leader to the next attempt"
    ));
    coordinator::await_leader(scene, Some(leader), TOLD)
}

/// Every task of these jobs, which are all of the scene, was done once by the workers themselves, and no attempt was
/// lost on the way.
fn expect_nothing_done_twice(scene: &Scene, group: &str, jobs: &[Value]) {
    let mut done = 0;
    for job in jobs {
        assert_eq!(
            (attempts(job, "failed"), attempts(job, "lost")),
            (0, 0),
            "{:#}",
            job["status"]
        );
        done += attempts(job, "succeeded");
    }
    let pods = workers(scene, group);
    assert!(pods.iter().all(|pod| restarts(pod) == 0), "workers must live on");
    let succeeded = |pod: &Value| coordinator::worker_metric(pod, "attempts_total{outcome=\"succeeded\"}");
    let by_workers: f64 = pods.iter().map(succeeded).sum();
    assert_eq!(
        by_workers, done as f64,
        "attempts that workers finished, and tasks that were done"
    );
}

#[test]
fn leaders_killed_at_random_moments_cost_no_attempt() {
    let scene = Scene::new("leaders");
    let mut leader = start_with_standby(&scene, two_emulated_workers(&scene));
    let job = submit(&scene, &long_job("outlives"));
    await_middle(&job);
    for _ in 0..3 {
        std::thread::sleep(random_pause(NEXT_KILL));
        leader = kill_and_await_next(&scene, &leader, &job);
    }
    let done = job.succeeded(JOB_FINISHED);
    expect_nothing_done_twice(&scene, "cpu", &[done]);
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn a_real_proof_outlives_its_leaders_and_verifies() {
    let scene = Scene::new("real-leaders");
    let leader = start_with_standby(&scene, risc0(&scene, Kind::Composite, 2));
    let job = submit(
        &scene,
        &fibonacci(scene.namespace(), "outlives", Kind::Composite, LONG),
    );
    job.wait("a segment is proved", REAL_PROOF, |job| {
        Applied::done(job, "Prove") >= 1
    });
    std::thread::sleep(random_pause(NEXT_KILL));
    let next = kill_and_await_next(&scene, &leader, &job);
    std::thread::sleep(random_pause(NEXT_KILL));
    kill_and_await_next(&scene, &next, &job);
    let done = job.succeeded(REAL_PROOF);
    expect_verified(&done, "fibonacci");
    expect_nothing_done_twice(&scene, "prover", &[done]);
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn both_coordinators_killed_at_once_cost_no_attempt() {
    let scene = Scene::new("both-leaders");
    let leader = start_with_standby(&scene, two_emulated_workers(&scene));
    let jobs = ["first", "second"].map(|name| submit(&scene, &long_job(name)));
    await_middle(&jobs[0]);
    std::thread::sleep(random_pause(NEXT_KILL));
    let killed = Instant::now();
    for pod in coordinator::pods(&scene) {
        node::signal(&pod, "coordinator", "prover-operator", "KILL");
    }
    coordinator::await_lead(&scene, &leader, TAKEOVER);
    note_next(&scene, "kill of both coordinators", killed);
    let done = jobs.each_ref().map(|job| job.succeeded(2 * JOB_FINISHED));
    expect_nothing_done_twice(&scene, "cpu", &done);
    expect_no_leaked_artifacts(&scene, &jobs.each_ref());
    scene.finish();
}

#[test]
fn a_stopped_leader_that_wakes_up_finds_another_one_and_changes_nothing() {
    let scene = Scene::new("stale-leader");
    let stale = start_with_standby(&scene, two_emulated_workers(&scene));
    let job = submit(&scene, &long_job("unmoved"));
    await_middle(&job);
    let stopped = Instant::now();
    node::signal(&stale.pod, "coordinator", "prover-operator", "STOP");
    coordinator::await_lead(&scene, &stale, TAKEOVER);
    note_next(&scene, "stop of a leader", stopped);
    std::thread::sleep(random_pause(NEXT_KILL));
    node::signal(&stale.pod, "coordinator", "prover-operator", "CONT");
    let next = coordinator::await_leader(&scene, Some(&stale), TOLD);
    let done = job.succeeded(JOB_FINISHED);
    let last = coordinator::await_leader(&scene, None, TOLD);
    assert_eq!(
        (last.name(), last.epoch),
        (next.name(), next.epoch),
        "the stale one must not lead again"
    );
    expect_nothing_done_twice(&scene, "cpu", &[done]);
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn a_leader_lost_while_the_store_is_away_is_followed_when_it_is_back() {
    let scene = Scene::alone("no-store-takeover");
    let leader = start_with_standby(&scene, two_emulated_workers(&scene));
    let job = submit(&scene, &long_job("patient"));
    await_middle(&job);
    scale("minio", "minio", 0);
    // Whoever leads next has nothing to read the log from.
    kill(&leader);
    std::thread::sleep(OUTAGE);
    scale("minio", "minio", 1);
    await_rollout("minio", "minio");
    let back = Instant::now();
    coordinator::await_lead(&scene, &leader, TAKEOVER);
    note_next(&scene, "return of the store", back);
    let done = job.succeeded(2 * JOB_FINISHED);
    expect_nothing_done_twice(&scene, "cpu", &[done]);
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn a_leader_lost_while_the_api_server_is_away_is_followed_when_it_is_back() {
    let scene = Scene::alone("no-api-takeover");
    let leader = start_with_standby(&scene, two_emulated_workers(&scene));
    let job = submit(&scene, &long_job("patient"));
    await_middle(&job);
    node::component("stop", "kube-apiserver");
    kill(&leader);
    std::thread::sleep(OUTAGE);
    node::component("start", "kube-apiserver");
    await_api_server();
    let back = Instant::now();
    coordinator::await_lead(&scene, &leader, TAKEOVER);
    note_next(&scene, "return of the API server", back);
    let done = job.succeeded(2 * JOB_FINISHED);
    expect_nothing_done_twice(&scene, "cpu", &[done]);
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}
