//! ProverClusters that are edited while they prove.

use std::time::Duration;

use prover_e2e::Model;
use serde_json::json;

use crate::support::kubectl::{apply, list, patch, try_kubectl};
use crate::support::node;
use crate::support::objects::{Cluster, image};
use crate::support::proofs::{expect_gnark_verified, gnark_job, gnark_of};
use crate::support::scene::{Scene, is_true};
use crate::support::steps::{
    Applied, JOB_FINISHED, JOB_RUNNING, POD_REPLACED, agent_log, attempts, await_cluster, await_workers,
    eventually, expect_no_leaked_artifacts, expect_nothing_lost, name, start_cluster, start_emulated, submit,
    submit_all, workers,
};

/// Jobs that are queued when the image changes.
const QUEUED: u64 = 30;

#[test]
fn groups_are_added_and_removed_while_a_job_runs() {
    let scene = Scene::new("groups");
    start_cluster(
        &scene,
        &Cluster::emulated(&scene).group("first", "emulated", json!({})),
    );
    let job = submit(&scene, &Model::new(40).duration("prove", 600).manifest("long"));
    job.wait("it runs", JOB_RUNNING, |job| Applied::done(job, "Prove") >= 1);
    let both = Cluster::emulated(&scene)
        .group("first", "emulated", json!({}))
        .group("second", "emulated", json!({}));
    apply(both.manifest());
    await_workers(&scene, "second", 1, POD_REPLACED);
    apply(
        Cluster::emulated(&scene)
            .group("second", "emulated", json!({}))
            .manifest(),
    );
    let done = job.succeeded(JOB_FINISHED);
    assert_eq!(attempts(&done, "failed"), 0, "{:#}", done["status"]);
    eventually(POD_REPLACED, || {
        let orphans = list(scene.namespace(), "deployments", "proving.rs/worker-group=first").len();
        if orphans == 0 {
            Ok(())
        } else {
            Err(format!("{orphans} Deployments of a removed group"))
        }
    });
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn a_changed_group_gets_a_new_deployment_and_the_job_goes_on() {
    let scene = Scene::new("revision");
    start_emulated(&scene, 1);
    let job = submit(&scene, &Model::new(30).duration("prove", 500).manifest("steady"));
    job.wait("it runs", JOB_RUNNING, |job| Applied::done(job, "Prove") >= 1);
    let before = workers(&scene, "cpu")[0]["metadata"]["labels"]["proving.rs/revision"].clone();
    let changed = json!({"pod": {"env": [{"name": "E2E_REVISION", "value": "2"}]}});
    apply(
        Cluster::emulated(&scene)
            .group("cpu", "emulated", changed)
            .manifest(),
    );
    eventually(Duration::from_secs(90), || {
        let pods = workers(&scene, "cpu");
        let revisions: Vec<_> = pods
            .iter()
            .map(|pod| &pod["metadata"]["labels"]["proving.rs/revision"])
            .collect();
        match revisions[..] {
            [revision] if *revision != before => Ok(()),
            _ => Err(format!(
                "workers of revisions {revisions:?}, not only one other than {before}"
            )),
        }
    });
    let done = job.succeeded(JOB_FINISHED);
    assert_eq!(attempts(&done, "failed"), 0, "{:#}", done["status"]);
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn jobs_pinned_to_an_old_image_finish_on_it_beside_workers_of_the_new_one() {
    let scene = Scene::new("rollout");
    let old = image("prover-sample-gnark");
    let new = node::tag_image(&old, "next");
    start_cluster(&scene, &gnark_of(&scene, &old, json!({})));
    // One that is suspended stays unfinished, and pinned, for as long as it takes until the new image runs.
    let held = gnark_job(scene.namespace(), "held", QUEUED).spec("suspend", json!(true));
    let held = submit(&scene, &held);
    held.wait("it is suspended", JOB_RUNNING, |job| {
        is_true(job, "Accepted") && is_true(job, "Suspended")
    });
    let manifests: Vec<_> = (0..QUEUED)
        .map(|number| gnark_job(scene.namespace(), &format!("queued-{number}"), number))
        .collect();
    let queued = submit_all(
        &scene,
        manifests.iter().map(|manifest| (scene.namespace(), manifest)),
    );
    let deployments = || {
        let mut found = list(scene.namespace(), "deployments", "proving.rs/worker-group=cpu");
        found.retain(|deployment| deployment["metadata"]["deletionTimestamp"].is_null());
        found
    };
    let before = name(&deployments()[0]).to_owned();
    apply(gnark_of(&scene, &new, json!({})).manifest());
    await_cluster(&scene, "both images have a worker", POD_REPLACED, |cluster| {
        cluster["status"]["workers"]["connected"].as_u64() == Some(2)
    });
    for job in &queued {
        expect_gnark_verified(&job.succeeded(JOB_FINISHED));
    }
    let side_by_side: Vec<_> = deployments().iter().map(|each| name(each).to_owned()).collect();
    assert!(
        side_by_side.len() == 2 && side_by_side.contains(&before),
        "the old workers must stay for the suspended job: {side_by_side:?}"
    );
    let resumed = json!({"spec": {"suspend": false}});
    patch(scene.namespace(), "proofjob", "held", &resumed);
    let done = held.succeeded(JOB_FINISHED);
    expect_nothing_lost(&done);
    expect_gnark_verified(&done);
    eventually(Duration::from_secs(90), || match &deployments()[..] {
        [only] if name(only) != before => Ok(()),
        all => Err(format!("{:?}", all.iter().map(name).collect::<Vec<_>>())),
    });
    // Only workers of the new image are left, and none of them was given what was pinned to the old one.
    let uid = done["metadata"]["uid"].as_str().unwrap();
    assert!(
        workers(&scene, "cpu")
            .iter()
            .all(|pod| !agent_log(pod).contains(uid))
    );
    let afterwards = submit(&scene, &gnark_job(scene.namespace(), "afterwards", QUEUED + 1));
    expect_gnark_verified(&afterwards.succeeded(JOB_FINISHED));
    let jobs: Vec<_> = queued.iter().chain([&held, &afterwards]).collect();
    expect_no_leaked_artifacts(&scene, &jobs);
    scene.finish();
}

#[test]
fn applying_the_same_manifest_again_changes_nothing() {
    let scene = Scene::new("again");
    let cluster = Cluster::emulated(&scene).group("cpu", "emulated", json!({}));
    start_cluster(&scene, &cluster);
    let versions = || {
        let output = try_kubectl(&[
            "get",
            "deployments,services,serviceaccounts,roles,rolebindings,poddisruptionbudgets,networkpolicies",
            "--namespace",
            scene.namespace(),
            "--output",
            "jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.generation} {.metadata.uid}{\"\\n\"}{end}",
        ]);
        String::from_utf8(output.stdout).unwrap()
    };
    let before = versions();
    let generation = |object: &serde_json::Value| object["metadata"]["generation"].clone();
    let first = apply(cluster.manifest());
    assert_eq!(generation(&first), generation(&apply(cluster.manifest())));
    submit(&scene, &Model::new(2).manifest("afterwards")).succeeded(JOB_FINISHED);
    assert_eq!(before, versions());
    scene.finish();
}
