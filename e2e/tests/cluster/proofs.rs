//! The path from a manifest to a verified proof, per backend, and jobs of several namespaces at once.

use std::time::Duration;

use prover_e2e::Model;
use serde_json::json;

use crate::support::kubectl::apply;
use crate::support::objects::Cluster;
use crate::support::proofs::{
    Kind, SHORT, base64, expect_gnark_verified, expect_verified, fibonacci, gnark, gnark_job, risc0,
};
use crate::support::scene::{Scene, is_true};
use crate::support::steps::{
    JOB_FINISHED, REAL_PROOF, attempts, await_event, expect_no_leaked_artifacts, expect_only_kept,
    start_cluster, start_emulated, submit, submit_all, submit_in, workers,
};

#[test]
fn an_emulated_job_runs_in_pods_claims_no_proof_and_leaves_nothing() {
    let scene = Scene::new("emulated");
    start_emulated(&scene, 2);
    let model = Model::new(8).duration("prove", 200);
    let job = submit(&scene, &model.manifest("emulated"));
    let done = job.succeeded(JOB_FINISHED);
    assert_eq!(done["status"]["emulated"], true);
    assert!(
        done["status"]["proof"].is_null(),
        "a job that proved nothing claims a proof"
    );
    // 8 segments, so 8 lifts and 7 joins; one plan, one finalize, one verify. Nothing failed, so each ran once.
    assert_eq!(attempts(&done, "succeeded"), 8 + 8 + 7 + 3);
    assert_eq!((attempts(&done, "failed"), attempts(&done, "lost")), (0, 0));
    await_event(
        job.namespace.as_str(),
        "emulated",
        "Succeeded",
        Duration::from_secs(10),
    );
    expect_no_leaked_artifacts(&scene, &[&job]);
    job.delete(Duration::from_secs(60));
    expect_only_kept(&scene, &done);
    scene.finish();
}

#[test]
fn two_jobs_of_two_namespaces_are_proved_at_once() {
    let mut scene = Scene::new("namespaces");
    let other = scene.another_namespace("guest");
    let cluster =
        Cluster::emulated(&scene)
            .of_all_namespaces(&scene)
            .group("cpu", "emulated", json!({"replicas": 2}));
    start_cluster(&scene, &cluster);
    let model = Model::new(16).duration("prove", 500);
    let manifests = [model.manifest("first"), model.manifest("second")];
    // With one call: two could lie further apart than a job takes, where the machine is busy.
    let jobs = submit_all(
        &scene,
        [scene.namespace(), other.as_str()].into_iter().zip(&manifests),
    );
    let times = [&jobs[0], &jobs[1]].map(|job| {
        let status = job.succeeded(JOB_FINISHED)["status"].clone();
        let time = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
        (time("startTime"), time("completionTime"))
    });
    // Moments of RFC 3339 in UTC sort as text.
    let [(first_start, first_end), (second_start, second_end)] = &times;
    assert!(
        first_start < second_end && second_start < first_end,
        "one after the other: {times:?}"
    );
    expect_no_leaked_artifacts(&scene, &[&jobs[0], &jobs[1]]);
    scene.finish();
}

#[test]
fn a_job_of_a_namespace_that_is_not_allowed_is_told_so() {
    let mut scene = Scene::new("stranger");
    let other = scene.another_namespace("stranger");
    start_emulated(&scene, 1);
    let job = submit_in(&scene, &other, &Model::new(1).manifest("unwanted"));
    job.wait("the job is refused", Duration::from_secs(30), |job| {
        crate::support::scene::condition(job, "Accepted").is_some_and(|accepted| {
            accepted["status"] == "False" && accepted["reason"] == "NamespaceNotAllowed"
        })
    });
    scene.finish();
}

#[test]
fn a_gnark_proof_is_made_in_the_users_own_image_and_verifies() {
    let scene = Scene::new("gnark");
    start_cluster(&scene, &gnark(&scene, json!({})));
    let job = submit(&scene, &gnark_job(scene.namespace(), "chain", 42));
    let done = job.succeeded(JOB_FINISHED);
    expect_gnark_verified(&done);
    assert!(
        done["status"]["emulated"].is_null(),
        "a real proof is not emulated"
    );
    expect_no_leaked_artifacts(&scene, &[&job]);
    expect_no_credentials_in_backends(&scene);
    scene.finish();
}

/// Containers in which users' programs run hold neither credentials of the store, nor a token, nor the authority.
fn expect_no_credentials_in_backends(scene: &Scene) {
    for pod in workers(scene, "cpu") {
        let containers = pod["spec"]["containers"].as_array().unwrap();
        let backends: Vec<_> = containers.iter().filter(|each| each["name"] != "agent").collect();
        assert!(!backends.is_empty());
        for backend in backends {
            let said = backend.to_string();
            for secret in [
                "AWS_",
                "secretKeyRef",
                "serviceaccount",
                "proving.rs/token",
                "/etc/prover/ca",
            ] {
                assert!(!said.contains(secret), "{secret} in {said}");
            }
        }
    }
}

#[test]
fn gnark_proofs_of_many_jobs_of_two_namespaces_all_verify() {
    let mut scene = Scene::new("gnark-many");
    let guest = scene.another_namespace("guest");
    let cluster = gnark(&scene, json!({"replicas": 2})).of_all_namespaces(&scene);
    start_cluster(&scene, &cluster);
    let own = scene.namespace().to_owned();
    let jobs: Vec<_> = (0..6)
        .map(|number| {
            let namespace = if number % 2 == 0 { &own } else { &guest };
            submit_in(
                &scene,
                namespace,
                &gnark_job(namespace, &format!("chain-{number}"), 100 + number),
            )
        })
        .collect();
    for job in &jobs {
        expect_gnark_verified(&job.succeeded(JOB_FINISHED));
    }
    expect_no_leaked_artifacts(&scene, &jobs.iter().collect::<Vec<_>>());
    scene.finish();
}

#[test]
fn a_gnark_program_that_is_no_bundle_fails_its_job_in_the_provers_words() {
    let scene = Scene::new("gnark-bad");
    start_cluster(&scene, &gnark(&scene, json!({})));
    let bad = gnark_job(scene.namespace(), "bad", 1).spec("program", json!({"inline": base64(b"no bundle")}));
    let job = submit(&scene, &bad);
    let done = job.finished(JOB_FINISHED);
    assert!(
        is_true(&done, "Failed") && done["status"]["proof"].is_null(),
        "{:#}",
        done["status"]
    );
    let message = done["status"]["failure"]["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("bundle"),
        "the prover's own words are lost: {message}"
    );
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn a_risc_zero_proof_made_in_pods_is_verified_by_the_cli() {
    let scene = Scene::new("risc0");
    start_cluster(&scene, &risc0(&scene, Kind::Succinct, 1));
    let job = submit(
        &scene,
        &fibonacci(scene.namespace(), "fibonacci", Kind::Succinct, SHORT),
    );
    let done = job.succeeded(REAL_PROOF);
    expect_verified(&done, "fibonacci");
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

#[test]
fn a_manifest_that_breaks_a_rule_is_refused_with_what_to_write_instead() {
    let scene = Scene::new("rules");
    let mut job = crate::support::objects::job(&scene, scene.namespace(), &Model::new(1).manifest("broken"));
    job["spec"]["program"] = json!({"file": {"path": "program.elf"}});
    let refusal = crate::support::kubectl::try_apply(&job).unwrap_err();
    assert!(
        refusal.contains("file") && refusal.contains("local mode"),
        "{refusal}"
    );
    apply(&crate::support::objects::job(
        &scene,
        scene.namespace(),
        &Model::new(1).manifest("whole"),
    ));
    scene.finish();
}
