//! Steps that many scenarios share, with their time limits, and the checks for lost jobs, doubled tasks and leaks.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use prover_e2e::{Manifest, Model};
use serde_json::{Value, json};

use super::kubectl::{apply, await_gone, await_named, await_object, get, kubectl, list, try_kubectl};
use super::objects::{self, CLUSTER, Cluster};
use super::scene::{Scene, condition, is_true};

/// From a ProverCluster to its workers connected: images are there, but pods of other scenes may have to go before its
/// own find room on the node.
pub(crate) const CLUSTER_READY: Duration = Duration::from_secs(300);
/// From a job to its end, where its tasks take seconds at most, beside real proofs of other scenes.
pub(crate) const JOB_FINISHED: Duration = Duration::from_secs(300);
/// From a job to its first running task on warm workers.
pub(crate) const JOB_RUNNING: Duration = Duration::from_secs(30);
/// From the end of a job to the deletion of what only it needed.
pub(crate) const COLLECTED: Duration = Duration::from_secs(30);
/// From the loss of a pod to another in its place.
pub(crate) const POD_REPLACED: Duration = Duration::from_secs(60);

/// A RISC Zero proof of few segments on what cores a test machine has, beside other tests.
pub(crate) const REAL_PROOF: Duration = Duration::from_secs(900);

const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Applies a ProverCluster and waits until it can prove, and its pods are known to be ready.
pub(crate) fn start_cluster(scene: &Scene, cluster: &Cluster) -> Value {
    apply(cluster.manifest());
    let groups = cluster.manifest()["spec"]["workerGroups"].as_array();
    let groups: Vec<(&str, usize)> = groups
        .into_iter()
        .flatten()
        .filter_map(|group| {
            let replicas = usize::try_from(group["replicas"].as_u64()?).ok()?;
            Some((group["name"].as_str()?, replicas))
        })
        .collect();
    let wanted: usize = groups.iter().map(|(_, replicas)| replicas).sum();
    let what = format!("the ProverCluster is ready with {wanted} workers");
    let ready = await_cluster(scene, &what, CLUSTER_READY, |cluster| {
        let connected = cluster["status"]["workers"]["connected"].as_u64().unwrap_or(0);
        is_true(cluster, "Ready") && connected >= wanted as u64 && observed(cluster)
    });
    // A worker connects before the kubelet tells that its pod is ready.
    for (group, replicas) in groups {
        await_ready(scene, group, replicas, CLUSTER_READY);
    }
    ready
}

/// Starts a ProverCluster with so many emulated workers in a group `cpu`.
pub(crate) fn start_emulated(scene: &Scene, workers: u64) -> Value {
    let group = json!({"replicas": workers});
    start_cluster(scene, &Cluster::emulated(scene).group("cpu", "emulated", group))
}

/// An emulated job that lasts long enough to be hit in the middle: about 25 seconds on two workers, since status
/// tells of progress every 10 seconds.
pub(crate) fn slow_job(name: &str) -> Manifest {
    Model::new(48)
        .duration("prove", 800)
        .duration("lift", 100)
        .duration("join", 100)
        .manifest(name)
}

/// Waits until a slow job is in its middle.
pub(crate) fn await_middle(job: &Applied) {
    job.wait("some segments are proved", JOB_RUNNING, |job| {
        Applied::done(job, "Prove") >= 3
    });
}

/// Waits for something about the scene's ProverCluster.
pub(crate) fn await_cluster(
    scene: &Scene,
    what: &str,
    limit: Duration,
    holds: impl FnMut(&Value) -> bool,
) -> Value {
    await_named(scene.namespace(), "provercluster", CLUSTER, what, limit, holds)
}

/// Whether status speaks of the present spec.
pub(crate) fn observed(object: &Value) -> bool {
    object["status"]["observedGeneration"] == object["metadata"]["generation"]
}

/// A job that was applied.
pub(crate) struct Applied {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
}

impl Applied {
    /// Waits for something about the job.
    pub(crate) fn wait(&self, what: &str, limit: Duration, holds: impl FnMut(&Value) -> bool) -> Value {
        await_named(&self.namespace, "proofjob", &self.name, what, limit, holds)
    }

    /// Waits until the job is finished, well or not.
    pub(crate) fn finished(&self, limit: Duration) -> Value {
        self.wait(&format!("job {} is finished", self.name), limit, |job| {
            is_true(job, "Finished")
        })
    }

    /// Waits until the job has succeeded, and checks what every success must show.
    ///
    /// # Panics
    /// It failed, or its status contradicts itself.
    pub(crate) fn succeeded(&self, limit: Duration) -> Value {
        let job = self.finished(limit);
        assert!(
            is_true(&job, "Succeeded"),
            "job {} did not succeed: {:#}",
            self.name,
            job["status"]
        );
        assert_eq!(job["status"]["phase"], "Succeeded");
        expect_each_task_once(&job);
        job
    }

    /// Waits until the job has failed with this reason.
    pub(crate) fn failed(&self, reason: &str, limit: Duration) -> Value {
        let job = self.finished(limit);
        assert!(
            is_true(&job, "Failed"),
            "job {} did not fail: {:#}",
            self.name,
            job["status"]
        );
        let failed = condition(&job, "Failed").unwrap();
        assert_eq!(failed["reason"], reason, "{:#}", job["status"]);
        job
    }

    /// The job now.
    pub(crate) fn now(&self) -> Value {
        get(&self.namespace, "proofjob", &self.name).expect("the job is there")
    }

    /// Finished tasks of a stage.
    pub(crate) fn done(job: &Value, stage: &str) -> u64 {
        stages(job)
            .find(|found| found["name"] == stage)
            .and_then(|found| found["done"].as_u64())
            .unwrap_or(0)
    }

    /// Deletes the job and waits until it is gone, with what it left in the store but for what its user keeps.
    pub(crate) fn delete(&self, limit: Duration) {
        kubectl(&[
            "delete",
            "proofjob",
            &self.name,
            "--namespace",
            &self.namespace,
            "--wait=false",
        ]);
        await_gone(&self.namespace, "proofjob", &self.name, limit);
    }
}

/// Applies a job of the scene's first namespace.
pub(crate) fn submit(scene: &Scene, manifest: &Manifest) -> Applied {
    submit_in(scene, scene.namespace(), manifest)
}

/// Applies a job.
pub(crate) fn submit_in(scene: &Scene, namespace: &str, manifest: &Manifest) -> Applied {
    let job = apply(&objects::job(scene, namespace, manifest));
    Applied {
        namespace: namespace.to_owned(),
        name: name(&job).to_owned(),
    }
}

/// Applies many jobs, each to its namespace, with one call.
pub(crate) fn submit_all<'a>(
    scene: &Scene,
    manifests: impl IntoIterator<Item = (&'a str, &'a Manifest)>,
) -> Vec<Applied> {
    let (mut items, mut applied) = (Vec::new(), Vec::new());
    for (namespace, manifest) in manifests {
        let job = objects::job(scene, namespace, manifest);
        applied.push(Applied {
            namespace: namespace.to_owned(),
            name: name(&job).to_owned(),
        });
        items.push(job);
    }
    apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}));
    applied
}

fn stages(job: &Value) -> impl Iterator<Item = &Value> {
    job["status"]["progress"]["stages"]
        .as_array()
        .into_iter()
        .flatten()
}

/// Every task that was known is done, and each gave one accepted result.
fn expect_each_task_once(job: &Value) {
    let status = &job["status"];
    let (mut done, mut known) = (0, 0);
    for stage in stages(job) {
        done += stage["done"].as_u64().unwrap_or(0);
        known += stage["total"].as_u64().unwrap_or(0);
    }
    assert!(known > 0, "a finished job shows no stages: {status:#}");
    // A job that was planned again also counts the plan before, which was given up in its middle.
    if status["attempts"]["replans"].as_u64().unwrap_or(0) == 0 {
        assert_eq!(done, known, "unfinished tasks in a finished job: {status:#}");
    }
    assert_eq!(
        attempts(job, "succeeded"),
        done,
        "results were accepted twice or never: {status:#}"
    );
}

/// Attempts of a kind (`started`, `failed`, `lost`).
pub(crate) fn attempts(job: &Value, kind: &str) -> u64 {
    job["status"]["attempts"][kind].as_u64().unwrap_or(0)
}

/// No attempt of a job failed or went with its worker.
pub(crate) fn expect_nothing_lost(job: &Value) {
    assert_eq!(
        (attempts(job, "failed"), attempts(job, "lost")),
        (0, 0),
        "{:#}",
        job["status"]
    );
}

/// Ready worker pods of a group, oldest first.
pub(crate) fn workers(scene: &Scene, group: &str) -> Vec<Value> {
    let selector = format!("proving.rs/cluster={CLUSTER},proving.rs/worker-group={group}");
    let mut pods = list(scene.namespace(), "pods", &selector);
    pods.retain(|pod| is_true(pod, "Ready") && pod["metadata"]["deletionTimestamp"].is_null());
    pods.sort_by_key(|pod| {
        pod["metadata"]["creationTimestamp"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    });
    pods
}

/// Waits until so many pods of a group are ready, and gives them as [`workers`] does.
pub(crate) fn await_ready(scene: &Scene, group: &str, replicas: usize, limit: Duration) -> Vec<Value> {
    let mut pods = Vec::new();
    eventually(limit, || {
        pods = workers(scene, group);
        match pods.len() {
            ready if ready == replicas => Ok(()),
            ready => Err(format!("{ready} of {replicas} pods of group {group} are ready")),
        }
    });
    pods
}

/// How often the containers of a pod were started again.
pub(crate) fn restarts(pod: &Value) -> u64 {
    let containers = pod["status"]["containerStatuses"].as_array();
    containers
        .into_iter()
        .flatten()
        .filter_map(|each| each["restartCount"].as_u64())
        .sum()
}

/// Whether a worker was given the planner of its scene's only job.
pub(crate) fn runs_planner(pod: &Value) -> bool {
    agent_log(pod).contains(r#"task_type="plan""#)
}

/// What the agent of a worker has said.
pub(crate) fn agent_log(pod: &Value) -> String {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let output = try_kubectl(&[
        "logs",
        name(pod),
        "--namespace",
        namespace,
        "--container",
        "agent",
    ]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until a group has so many connected workers by its cluster's status.
pub(crate) fn await_workers(scene: &Scene, group: &str, count: u64, limit: Duration) {
    await_cluster(
        scene,
        &format!("group {group} has {count} connected workers"),
        limit,
        |cluster| {
            let groups = cluster["status"]["groups"].as_array();
            groups
                .into_iter()
                .flatten()
                .any(|found| found["name"] == group && found["workers"]["connected"].as_u64() == Some(count))
        },
    );
}

/// The name of an object.
pub(crate) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Deletes a pod without grace, as a lost machine does.
pub(crate) fn kill_pod(scene: &Scene, pod: &str) {
    kubectl(&[
        "delete",
        "pod",
        pod,
        "--namespace",
        scene.namespace(),
        "--grace-period=0",
        "--force",
    ]);
}

/// Sets the replicas of a Deployment.
pub(crate) fn scale(namespace: &str, deployment: &str, replicas: u32) {
    let replicas = format!("--replicas={replicas}");
    kubectl(&[
        "scale",
        "deployment",
        deployment,
        "--namespace",
        namespace,
        &replicas,
    ]);
}

/// Waits until a Deployment has all its replicas ready.
pub(crate) fn await_rollout(namespace: &str, deployment: &str) {
    kubectl(&[
        "rollout",
        "status",
        "deployment",
        deployment,
        "--namespace",
        namespace,
        "--timeout",
        "120s",
    ]);
}

/// Waits for an event about an object.
pub(crate) fn await_event(namespace: &str, object: &str, reason: &str, limit: Duration) -> Value {
    let field = format!("involvedObject.name={object},reason={reason}");
    let what = format!("an event {reason} about {object}");
    await_object(
        namespace,
        "events",
        &["--field-selector", &field],
        &what,
        limit,
        |_| true,
    )
}

/// Finished jobs must leave nothing in the store but what their status names: proof and public values.
///
/// # Panics
/// Something else is still there after [`COLLECTED`].
pub(crate) fn expect_no_leaked_artifacts(scene: &Scene, jobs: &[&Applied]) {
    let mut kept = Vec::new();
    let mut given_up = 0;
    for job in jobs {
        let job = job.now();
        for place in [
            &job["status"]["proof"]["uri"],
            &job["status"]["publicValues"]["uri"],
        ] {
            kept.extend(place.as_str().map(str::to_owned));
        }
        given_up += attempts(&job, "started") - attempts(&job, "succeeded");
        // What an emulated job made is no proof, so its status names none; it stays as long as the object does.
        if job["status"]["emulated"] == true {
            let folder = format!("jobs/{}/", job["metadata"]["uid"].as_str().unwrap_or_default());
            let made = scene
                .keys_of_jobs()
                .into_iter()
                .filter(|key| key.starts_with(&folder));
            kept.extend(made.filter(|key| key.ends_with("/proof")).take(1));
        }
    }
    eventually(COLLECTED, || {
        let mut leaked = scene.keys_of_jobs();
        leaked.retain(|key| !kept.iter().any(|uri| uri.ends_with(key.as_str())));
        // What an attempt had uploaded when it was stopped or its worker was lost goes with the job's object.
        let attempts: BTreeSet<_> = leaked.iter().filter_map(|key| key.split('/').nth(3)).collect();
        if attempts.len() as u64 <= given_up {
            Ok(())
        } else {
            Err(format!(
                "artifacts that no status names, and {given_up} attempts were given up: {leaked:#?}"
            ))
        }
    });
}

/// Of deleted jobs nothing stays in the store but what their last status named.
pub(crate) fn expect_only_kept(scene: &Scene, job: &Value) {
    let status = &job["status"];
    for key in scene.keys_of_jobs() {
        let kept = [&status["proof"]["uri"], &status["publicValues"]["uri"]];
        let named = kept
            .iter()
            .any(|uri| uri.as_str().is_some_and(|uri| uri.ends_with(&key)));
        assert!(named, "a deleted job left {key}, and its status named {kept:?}");
    }
}

/// Looks again and again at what can't be watched until it is as it should be.
///
/// # Panics
/// It is not within `limit`: the message is what the last look found wrong.
pub(crate) fn eventually(limit: Duration, mut look: impl FnMut() -> Result<(), String>) {
    let give_up = Instant::now() + limit;
    while let Err(wrong) = look() {
        assert!(Instant::now() < give_up, "after {limit:?}: {wrong}");
        std::thread::sleep(LOOK_EVERY);
    }
}
