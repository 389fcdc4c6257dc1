//! Coordinators that end while jobs run: another one leads, running attempts go on, nothing that was finished is done
//! again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use prover_e2e::{Manifest, Model};
use serde_json::{Value, json};

use crate::support::coordinator::{self, Leader};
use crate::support::kubectl::kubectl;
use crate::support::node;
use crate::support::objects::Cluster;
use crate::support::proofs::{Kind, LONG, expect_verified, fibonacci, risc0};
use crate::support::scene::{Scene, await_api_server, is_true, random_pause};
use crate::support::steps::{
    Applied, JOB_FINISHED, POD_REPLACED, REAL_PROOF, attempts, await_middle, await_ready, await_rollout,
    eventually, expect_no_leaked_artifacts, expect_nothing_lost, name, restarts, scale, start_cluster,
    submit,
};

/// Longest time from the end of a leader to another one, where the machine does much else: its Lease of 3 s runs out,
/// and the log is read.
const TAKEOVER: Duration = Duration::from_secs(30);

/// Longest time until the ProverCluster's status tells of a new leader: the operator notices a stream that has gone silent
/// after 20 s.
const TOLD: Duration = Duration::from_secs(90);

/// Workers of a scene.
const WORKERS: usize = 2;

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
    coordinator::await_leader(scene, 0, TOLD)
}

fn emulated_workers(scene: &Scene) -> Cluster {
    Cluster::emulated(scene).group("cpu", "emulated", json!({"replicas": WORKERS}))
}

/// Sends a signal to the process of a coordinator, and gives the moment: KILL is what a lost machine or the kernel does.
fn signal(pod: &Value, signal: &str) -> Instant {
    node::signal_in_pod(pod, "prover-operator", signal)
}

/// Waits for the leader after this one, and notes how long it took from a moment.
fn await_next(scene: &Scene, leader: &Leader, since: &str, moment: Instant) -> Leader {
    let next = coordinator::await_lead(scene, leader, TAKEOVER);
    let seconds = moment.elapsed().as_secs_f64();
    scene.note(&format!("{seconds:6.1} s from the {since} to the next leader"));
    next
}

/// The same, and then for the first attempt that it sends to a worker for one of these jobs.
fn await_next_attempt(
    scene: &Scene,
    leader: &Leader,
    jobs: &[&Applied],
    since: &str,
    moment: Instant,
) -> Leader {
    let next = await_next(scene, leader, since, moment);
    eventually(TAKEOVER, || match coordinator::assignments_of(&next) {
        0.0 if jobs.iter().any(|job| !is_true(&job.now(), "Finished")) => {
            Err("it has sent no attempt to a worker".to_owned())
        }
        _ => Ok(()),
    });
    let seconds = moment.elapsed().as_secs_f64();
    scene.note(&format!("{seconds:6.1} s from the {since} to the next attempt"));
    next
}

/// Every task of these jobs, which are all of the scene, was done by the workers themselves, no attempt was lost on the
/// way, and no task was given to a second worker but on purpose, beside an attempt that took too long.
///
/// Tasks are told apart by their ids. One whose submission was not in the log yet when its leader died is not known to
/// the next one: the planner submits it again, with another id.
fn expect_nothing_done_twice(scene: &Scene, group: &str, jobs: &[Value]) {
    let mut done = 0;
    for job in jobs {
        expect_nothing_lost(job);
        done += attempts(job, "succeeded");
    }
    // The control plane takes pods for not ready while it is long without word of their node.
    let pods = await_ready(scene, group, WORKERS, POD_REPLACED);
    assert!(pods.iter().all(|pod| restarts(pod) == 0), "workers must live on");
    let succeeded = |pod: &Value| coordinator::worker_metric(pod, "attempts_total{outcome=\"succeeded\"}");
    let finished: f64 = pods.iter().map(succeeded).sum();
    assert!(finished >= done as f64, "{finished} attempts for {done} tasks");
    let mut given: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let mut left = BTreeSet::new();
    for pod in &pods {
        let log = kubectl(&[
            "logs",
            name(pod),
            "--namespace",
            scene.namespace(),
            "--container",
            "agent",
        ]);
        for line in log.lines() {
            let field = |name: &str| {
                let value = line.split_once(&format!(" {name}="))?.1;
                Some(value.split(' ').next()?.to_owned())
            };
            let Some(attempt) = field("attempt") else { continue };
            if let (Some(job), Some(task)) = (field("job"), field("task")) {
                if field("speculative").as_deref() == Some("false") {
                    given.entry((job, task)).or_default().push(attempt);
                }
            } else if line.contains("given back") || line.contains("stopp") {
                left.insert(attempt);
            }
        }
    }
    assert!(
        given.len() as u64 >= done,
        "{} tasks in the logs of workers, of {done}",
        given.len()
    );
    for (task, mut attempts) in given {
        attempts.retain(|attempt| !left.contains(attempt));
        assert!(attempts.len() <= 1, "{task:?} was given as {attempts:?}");
    }
}

#[test]
fn leaders_killed_at_random_moments_cost_no_attempt() {
    let scene = Scene::new("leaders");
    let mut leader = start_with_standby(&scene, emulated_workers(&scene));
    let job = submit(&scene, &long_job("outlives"));
    await_middle(&job);
    for _ in 0..3 {
        std::thread::sleep(random_pause(NEXT_KILL));
        let killed = signal(&leader.pod, "KILL");
        leader = await_next_attempt(&scene, &leader, &[&job], "kill of a leader", killed);
    }
    // What everybody else sees of it.
    let told = coordinator::await_leader(&scene, leader.epoch, TOLD);
    assert_eq!(told.name(), leader.name());
    let done = job.succeeded(JOB_FINISHED);
    expect_nothing_done_twice(&scene, "cpu", &[done]);
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn a_real_proof_outlives_its_leaders_and_verifies() {
    let scene = Scene::new("real-leaders");
    let mut leader = start_with_standby(&scene, risc0(&scene, Kind::Composite, WORKERS as u64));
    let job = submit(
        &scene,
        &fibonacci(scene.namespace(), "outlives", Kind::Composite, 2 * LONG),
    );
    job.wait("a segment is proved", REAL_PROOF, |job| {
        Applied::done(job, "Prove") >= 1
    });
    // Workers hold what they prove and what they fetched ahead: the next leader may have nothing to send for long.
    for _ in 0..2 {
        std::thread::sleep(random_pause(NEXT_KILL / 3));
        assert!(!is_true(&job.now(), "Finished"), "the proof must be under way");
        let killed = signal(&leader.pod, "KILL");
        leader = await_next(&scene, &leader, "kill of a leader", killed);
    }
    let done = job.succeeded(REAL_PROOF);
    expect_verified(&done, "fibonacci");
    expect_nothing_done_twice(&scene, "prover", &[done]);
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn both_coordinators_killed_at_once_cost_no_attempt() {
    let scene = Scene::new("both-leaders");
    let leader = start_with_standby(&scene, emulated_workers(&scene));
    let jobs = ["first", "second"].map(|name| submit(&scene, &long_job(name)));
    await_middle(&jobs[0]);
    std::thread::sleep(random_pause(NEXT_KILL));
    // The one that follows first: it must not lead meanwhile.
    let mut pods = coordinator::pods(&scene);
    pods.sort_by_key(|pod| name(pod) == leader.name());
    let mut killed = Instant::now();
    for pod in &pods {
        killed = signal(pod, "KILL");
    }
    let both = jobs.each_ref();
    await_next_attempt(&scene, &leader, &both, "kill of both coordinators", killed);
    let done = both.map(|job| job.succeeded(2 * JOB_FINISHED));
    expect_nothing_done_twice(&scene, "cpu", &done);
    expect_no_leaked_artifacts(&scene, &jobs.each_ref());
    scene.finish();
}

#[test]
fn a_stopped_leader_that_wakes_up_finds_another_one_and_changes_nothing() {
    let scene = Scene::new("stale-leader");
    let stale = start_with_standby(&scene, emulated_workers(&scene));
    let job = submit(&scene, &long_job("unmoved"));
    await_middle(&job);
    let stopped = signal(&stale.pod, "STOP");
    let next = await_next_attempt(&scene, &stale, &[&job], "stop of a leader", stopped);
    std::thread::sleep(random_pause(NEXT_KILL));
    signal(&stale.pod, "CONT");
    let done = job.succeeded(JOB_FINISHED);
    let last = coordinator::await_leader(&scene, next.epoch, TOLD);
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
    let leader = start_with_standby(&scene, emulated_workers(&scene));
    let job = submit(&scene, &long_job("patient"));
    await_middle(&job);
    scale("minio", "minio", 0);
    // Whoever leads next has nothing to read the log from.
    signal(&leader.pod, "KILL");
    std::thread::sleep(OUTAGE);
    scale("minio", "minio", 1);
    await_rollout("minio", "minio");
    let back = Instant::now();
    await_next_attempt(&scene, &leader, &[&job], "return of the store", back);
    let done = job.succeeded(2 * JOB_FINISHED);
    expect_nothing_done_twice(&scene, "cpu", &[done]);
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn a_leader_lost_while_the_api_server_is_away_is_followed_when_it_is_back() {
    let scene = Scene::alone("no-api-takeover");
    let leader = start_with_standby(&scene, emulated_workers(&scene));
    let job = submit(&scene, &long_job("patient"));
    await_middle(&job);
    node::component("stop", "kube-apiserver");
    signal(&leader.pod, "KILL");
    std::thread::sleep(OUTAGE);
    node::component("start", "kube-apiserver");
    await_api_server();
    let back = Instant::now();
    await_next_attempt(&scene, &leader, &[&job], "return of the API server", back);
    let done = job.succeeded(2 * JOB_FINISHED);
    expect_nothing_done_twice(&scene, "cpu", &[done]);
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}
