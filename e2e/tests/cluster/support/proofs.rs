//! Real proofs: of gnark in the user's own image, of RISC Zero; and their verification outside the cluster.

use std::path::{Path, PathBuf};
use std::process::Command;

use prover_e2e::{Manifest, Model, bin_directory, binary, sample_program, workspace};
use serde_json::{Value, json};

use super::kubectl::{get, kubectl};
use super::objects::{Cluster, image};
use super::scene::Scene;
use super::store;

/// The gnark prover of config/samples/command, as an image of the user's own.
pub(crate) fn gnark(scene: &Scene, more: Value) -> Cluster {
    gnark_of(scene, &image("prover-sample-gnark"), more)
}

/// The same of an image of this name.
pub(crate) fn gnark_of(scene: &Scene, image: &str, more: Value) -> Cluster {
    let prover = "/usr/local/bin/prover-sample-gnark";
    Cluster::new(scene)
        .backend(json!({
            "name": "gnark", "system": "command", "image": image,
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

/// Puts a file into a ConfigMap, where it is not there yet. Jobs read it only where its owner allows it.
pub(crate) fn keep_for_jobs(namespace: &str, config_map: &str, key: &str, file: &Path) {
    if get(namespace, "configmap", config_map).is_some() {
        return;
    }
    let source = format!("--from-file={key}={}", file.display());
    kubectl(&[
        "create",
        "configmap",
        config_map,
        "--namespace",
        namespace,
        &source,
    ]);
    let label = "proving.rs/readable-by-proofjobs=true";
    kubectl(&["label", "configmap", config_map, label, "--namespace", namespace]);
}

/// A Groth16 proof that the seed leads to the public end, for the small bundle in a ConfigMap of the namespace.
pub(crate) fn gnark_job(namespace: &str, name: &str, seed: u64) -> Manifest {
    keep_for_jobs(namespace, "chain", "bundle", &sample("chain.bundle"));
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

/// A ProverCluster of RISC Zero on CPUs, with workers that are large enough for the kind of proof.
pub(crate) fn risc0(scene: &Scene, kind: Kind, workers: u64) -> Cluster {
    let (memory, exchange) = match kind {
        Kind::Succinct => ("4Gi", "512Mi"),
        Kind::Composite => ("2Gi", "256Mi"),
    };
    Cluster::risc0(scene).group(
        "prover",
        "risc0",
        json!({"replicas": workers, "resources": {"cpu": "100m", "memory": memory}, "exchangeSize": exchange}),
    )
}

/// Kinds of RISC Zero's proofs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// One receipt of a job, whatever its length: a lift for each segment takes about 70 core seconds.
    Succinct,
    /// A receipt for each segment, of the smallest size: about 14 core seconds each.
    Composite,
}

/// A length of the sequence that is one segment of [`Kind::Succinct`].
pub(crate) const SHORT: u64 = 1_000;
/// A length of the sequence that is six segments of [`Kind::Composite`].
pub(crate) const LONG: u64 = 5_000;

/// The n-th number of Fibonacci's sequence, with the program in a ConfigMap.
pub(crate) fn fibonacci(namespace: &str, name: &str, kind: Kind, n: u64) -> Manifest {
    let program = sample_program("fibonacci");
    keep_for_jobs(namespace, "fibonacci", "program", &program);
    let (kind, segment_po2) = match kind {
        Kind::Succinct => ("Succinct", 16),
        Kind::Composite => ("Composite", 14),
    };
    Manifest::risc0(name, kind, &program)
        .spec(
            "program",
            json!({"configMap": {"name": "fibonacci", "key": "program"}}),
        )
        .spec("input", json!({"inline": base64(&n.to_le_bytes())}))
        .spec("segmentPo2", json!(segment_po2))
        .spec("maxCycles", json!(1_000_000))
}

/// The bytes as manifests have them inline.
pub(crate) fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Downloads the proof that a job claims and has the command line verify it against the program's own identity.
pub(crate) fn expect_verified(job: &Value, program: &str) {
    let identity = Command::new(binary("prover-backend-risc0"))
        .args(["image-id", "--program"])
        .arg(sample_program(program))
        .output()
        .unwrap();
    let identity = String::from_utf8(identity.stdout).unwrap();
    assert_eq!(
        job["status"]["proof"]["programId"].as_str(),
        Some(identity.trim())
    );
    expect_accepted(job, &["--image-id", identity.trim()]);
}

/// Downloads the proof that a job claims and has the command line verify it as these arguments say.
pub(crate) fn expect_accepted(job: &Value, arguments: &[&str]) {
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
    let output = Command::new(binary("kubectl-proof"))
        .arg("verify")
        .arg(&file)
        .args(arguments)
        .env("PROVER_BACKENDS_DIRECTORY", bin_directory())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "the proof is refused: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
