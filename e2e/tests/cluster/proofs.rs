//! The path from a manifest to a verified proof, per backend, and jobs of several namespaces at once.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use prover_e2e::{Manifest, Model, bin_directory, binary, sample_program, workspace};
use serde_json::{Value, json};

use crate::support::kubectl::{apply, get, kubectl};
use crate::support::objects::{Cluster, image};
use crate::support::scene::{Scene, is_true};
use crate::support::steps::{
    JOB_FINISHED, attempts, await_event, expect_no_leaked_artifacts, expect_only_kept, start_cluster, submit,
    submit_in, workers,
};
use crate::support::store;

/// A RISC Zero proof of few segments on what cores a test machine has, beside other tests.
const REAL_PROOF: Duration = Duration::from_secs(900);

#[test]
fn an_emulated_job_runs_in_pods_claims_no_proof_and_leaves_nothing() {
    let scene = Scene::new("emulated");
    start_cluster(
        &scene,
        &Cluster::emulated(&scene).group("cpu", "emulated", json!({"replicas": 2})),
    );
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
    let cluster = Cluster::emulated(&scene)
        .spec(
            "allowedNamespaces",
            json!({"from": "Selector", "selector": {"matchLabels": {"proving.rs/e2e": scene.label()}}}),
        )
        .group("cpu", "emulated", json!({"replicas": 2}));
    start_cluster(&scene, &cluster);
    let model = Model::new(16).duration("prove", 500);
    let jobs = [
        submit(&scene, &model.manifest("first")),
        submit_in(&scene, &other, &model.manifest("second")),
    ];
    let times = jobs.each_ref().map(|job| {
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
    start_cluster(
        &scene,
        &Cluster::emulated(&scene).group("cpu", "emulated", json!({})),
    );
    let job = submit_in(&scene, &other, &Model::new(1).manifest("unwanted"));
    job.wait("the job is refused", Duration::from_secs(30), |job| {
        crate::support::scene::condition(job, "Accepted").is_some_and(|accepted| {
            accepted["status"] == "False" && accepted["reason"] == "NamespaceNotAllowed"
        })
    });
    scene.finish();
}

/// The gnark prover of config/samples/command, as an image of the user's own.
pub(crate) fn gnark(scene: &Scene, more: Value) -> Cluster {
    let prover = "/usr/local/bin/prover-sample-gnark";
    Cluster::new(scene)
        .backend(json!({
            "name": "gnark", "system": "command", "image": image("prover-sample-gnark"),
            "command": {
                "prove": [prover, "prove", "--program", "{program}", "--input", "{input}", "--proof", "{proof}",
                    "--public-values", "{publicValues}"],
                "verify": [prover, "verify", "--program", "{program}", "--proof", "{proof}", "--public-values",
                    "{publicValues}"],
                "hostMemory": "256Mi",
            },
        }))
        .group("cpu", "gnark", more)
}

/// ConfigMaps are read for jobs only where their owner allows it.
fn allow_jobs_to_read(namespace: &str, config_map: &str) {
    let label = "proving.rs/readable-by-proofjobs=true";
    kubectl(&["label", "configmap", config_map, label, "--namespace", namespace]);
}

/// A Groth16 proof that the seed leads to the public end, for the small bundle in a ConfigMap of the namespace.
pub(crate) fn gnark_job(namespace: &str, name: &str, seed: u64) -> Manifest {
    if get(namespace, "configmap", "chain").is_none() {
        let file = format!("--from-file=bundle={}", sample("chain.bundle").display());
        kubectl(&["create", "configmap", "chain", "--namespace", namespace, &file]);
        allow_jobs_to_read(namespace, "chain");
    }
    Model::new(1)
        .manifest(name)
        .spec(
            "program",
            json!({"configMap": {"name": "chain", "key": "bundle"}}),
        )
        .spec("input", json!({"text": seed.to_string()}))
        .spec(
            "proof",
            json!({"system": "command", "kind": "Proof", "backend": "gnark"}),
        )
}

fn sample(name: &str) -> PathBuf {
    let path = workspace().join("target/samples").join(name);
    assert!(path.is_file(), "{} is missing: run `make images`", path.display());
    path
}

/// Downloads the proof that a job claims and has gnark verify it here, against the bundle that was submitted.
pub(crate) fn expect_gnark_verified(job: &Value) {
    let folder = tempfile::tempdir().unwrap();
    let (proof, end) = (folder.path().join("proof"), folder.path().join("end"));
    let uri = |field: &str| {
        let uri = job["status"][field]["uri"].as_str();
        uri.unwrap_or_else(|| panic!("status names no {field}: {:#}", job["status"]))
            .to_owned()
    };
    store::download(&uri("proof"), &proof);
    store::download(&uri("publicValues"), &end);
    let verify = || {
        let mut command = Command::new(sample("prover-sample-gnark"));
        command.arg("verify").arg("--program").arg(sample("chain.bundle"));
        command
            .arg("--proof")
            .arg(&proof)
            .arg("--public-values")
            .arg(&end);
        command.output().unwrap()
    };
    let output = verify();
    assert!(
        output.status.success(),
        "the proof is refused: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    // A verifier that takes anything would take this too.
    let mut other = std::fs::read(&end).unwrap();
    *other.last_mut().unwrap() ^= 1;
    std::fs::write(&end, other).unwrap();
    assert!(
        !verify().status.success(),
        "gnark takes the proof for another end of the chain"
    );
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
    let cluster = gnark(&scene, json!({"replicas": 2})).spec(
        "allowedNamespaces",
        json!({"from": "Selector", "selector": {"matchLabels": {"proving.rs/e2e": scene.label()}}}),
    );
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
    start_cluster(
        &scene,
        &Cluster::risc0(&scene).group(
            "cpu",
            "risc0",
            json!({
                "replicas": 1, "resources": {"cpu": "500m", "memory": "4Gi"}, "exchangeSize": "512Mi",
            }),
        ),
    );
    let job = submit(&scene, &fibonacci(&scene, "fibonacci", 1_000));
    let done = job.succeeded(REAL_PROOF);
    expect_verified(&done, "fibonacci");
    expect_no_leaked_artifacts(&scene, &[&job]);
    scene.finish();
}

/// F(n), with the program in a ConfigMap.
pub(crate) fn fibonacci(scene: &Scene, name: &str, n: u64) -> Manifest {
    let program = sample_program("fibonacci");
    if get(scene.namespace(), "configmap", "fibonacci").is_none() {
        let file = format!("--from-file=program={}", program.display());
        kubectl(&[
            "create",
            "configmap",
            "fibonacci",
            "--namespace",
            scene.namespace(),
            &file,
        ]);
        allow_jobs_to_read(scene.namespace(), "fibonacci");
    }
    Manifest::risc0(name, "Succinct", &program)
        .spec(
            "program",
            json!({"configMap": {"name": "fibonacci", "key": "program"}}),
        )
        .spec("input", json!({"inline": base64(&n.to_le_bytes())}))
        .spec("segmentPo2", json!(16))
        .spec("maxCycles", json!(1_000_000))
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Downloads the proof that a job claims and has the command line verify it against the program's own identity.
pub(crate) fn expect_verified(job: &Value, program: &str) {
    let proof = &job["status"]["proof"];
    let uri = proof["uri"]
        .as_str()
        .unwrap_or_else(|| panic!("no proof: {:#}", job["status"]));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proof");
    store::download(uri, &file);
    assert_eq!(
        std::fs::metadata(&file).unwrap().len(),
        proof["sizeBytes"].as_u64().unwrap()
    );
    let identity = Command::new(binary("prover-backend-risc0"))
        .args(["image-id", "--program"])
        .arg(sample_program(program))
        .output()
        .unwrap();
    let identity = String::from_utf8(identity.stdout).unwrap();
    assert_eq!(proof["programId"].as_str(), Some(identity.trim()));
    let output = Command::new(binary("kubectl-proof"))
        .arg("verify")
        .arg(&file)
        .args(["--image-id", identity.trim()])
        .env("PROVER_BACKENDS_DIRECTORY", bin_directory())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "the proof is refused: {}",
        String::from_utf8_lossy(&output.stderr)
    );
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
