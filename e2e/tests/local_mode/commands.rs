//! The commands beside `run`.

use std::path::Path;
use std::process::{Command, Output};

use prover_e2e::{Model, bin_directory, binary, sample_program, workspace};

fn kubectl_proof(arguments: &[&str]) -> Output {
    Command::new(binary("kubectl-proof"))
        .args(arguments)
        .env("PROVER_BACKENDS_DIRECTORY", bin_directory())
        .output()
        .expect("kubectl-proof can be started")
}

/// Files of ours in a folder and those inside it; what surrounds them (namespaces, kustomizations) is not ours.
fn manifests_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)
        .expect("the samples are there")
        .flatten()
    {
        let path = entry.path();
        if path.is_dir() {
            found.extend(manifests_below(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = std::fs::read_to_string(&path).expect("a sample");
            if text
                .lines()
                .any(|line| line.starts_with("apiVersion: proving.rs/"))
            {
                found.push(path.to_string_lossy().into_owned());
            }
        }
    }
    found
}

#[test]
fn every_local_sample_is_valid() {
    let samples = manifests_below(&workspace().join("config/samples/local"));
    assert!(samples.len() >= 6, "{samples:?}");
    for sample in samples {
        let output = kubectl_proof(&["validate", "-f", &sample]);
        assert!(
            output.status.success(),
            "{sample}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn every_cluster_sample_is_valid_for_a_cluster() {
    let samples = manifests_below(&workspace().join("config/samples/cluster"));
    assert!(samples.len() >= 10, "{samples:?}");
    for sample in samples {
        let output = kubectl_proof(&["validate", "--cluster", "-f", &sample]);
        assert!(
            output.status.success(),
            "{sample}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let local = workspace().join("config/samples/local/fibonacci.yaml");
    let output = kubectl_proof(&["validate", "--cluster", "-f", local.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2), "a cluster refuses files");
}

#[test]
fn the_emulated_sample_runs() {
    let sample = workspace().join("config/samples/local/emulated.yaml");
    let done = prover_e2e::Job::of_file(sample).run().expect_code(0);
    assert_eq!(done.report()["execution"]["segments"], 16);
}

#[test]
fn validate_opens_no_files_and_tells_scripts_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.yaml");
    let text = Model::new(2).manifest("job").text();
    std::fs::write(&path, text.replace("\"spec\"", "\"spek\"")).unwrap();
    let output = kubectl_proof(&["validate", "-o", "json", "-f", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["valid"], &json["exitCode"]), (&false.into(), &2.into()));
    assert!(json["message"].as_str().unwrap().contains("spek"), "{json}");
}

#[test]
fn verify_tells_bad_input_from_a_refusal() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.proof");
    std::fs::write(&file, "no receipt at all").unwrap();
    let (file, id) = (file.to_str().unwrap(), "0".repeat(64));
    let program = sample_program("fibonacci");
    let program = program.to_str().unwrap();
    // A file that is no receipt can't always be told from a damaged one: either answer is right, success is not.
    let cases: [(&[&str], &[i32], &str); 8] = [
        (
            &["verify", "/nowhere/a.proof", "--image-id", &id],
            &[2],
            "/nowhere/a.proof",
        ),
        (
            &["verify", file, "--image-id", "xyz"],
            &[2],
            "64 hexadecimal digits",
        ),
        (&["verify", file, "--image-id", &id], &[1, 2], "can't be decoded"),
        (
            &["verify", file, "--image-id", &id, "--system", "emulated"],
            &[1],
            "refused",
        ),
        (&["verify", file], &[2], "--image-id"),
        (
            &["verify", file, "--program", "/nowhere/a.elf"],
            &[2],
            "/nowhere/a.elf",
        ),
        (
            &["verify", file, "--program", program, "--image-id", &id],
            &[2],
            "is program",
        ),
        (
            &["verify", file, "--program", program],
            &[1, 2],
            "can't be decoded",
        ),
    ];
    for (arguments, codes, word) in cases {
        let output = kubectl_proof(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code().expect("verify is not ended by a signal");
        assert!(codes.contains(&code), "{arguments:?} gave {code}: {stderr}");
        assert!(stderr.contains(word), "{arguments:?}: {stderr}");
    }
}

#[test]
fn help_documents_the_exit_codes_and_the_version_is_printed() {
    let help = kubectl_proof(&["run", "--help"]);
    assert!(help.status.success());
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(text.contains("130") && text.contains("bad input"), "{text}");
    let version = kubectl_proof(&["version"]);
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("kubectl-proof "));
}
