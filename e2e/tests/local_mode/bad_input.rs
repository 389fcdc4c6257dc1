//! Everything that a user can get wrong: exit code 2, and a message that says what, where and what to do.

use prover_e2e::{Job, Manifest, Model, binary, sample_program};
use serde_json::json;

/// One way of getting it wrong.
struct Case {
    what: &'static str,
    job: Job,
    /// Must all be in the message.
    words: Vec<String>,
    reason: &'static str,
}

fn case<const N: usize>(what: &'static str, reason: &'static str, job: Job, words: [&str; N]) -> Case {
    Case {
        what,
        job,
        words: words.map(str::to_owned).into(),
        reason,
    }
}

fn good() -> Manifest {
    Model::new(2).manifest("good")
}

fn expect_all_refused(cases: Vec<Case>) {
    for Case {
        what,
        job,
        words,
        reason,
    } in cases
    {
        let done = job.run();
        assert_eq!(done.code(), 2, "{what}: {}", done.stderr);
        let report = done.report();
        let message = report["message"].as_str().unwrap();
        for word in &words {
            assert!(
                message.contains(word),
                "{what}: {word:?} is not in the message: {message}"
            );
            assert!(
                done.stderr.contains(word),
                "{what}: {word:?} is not on standard error: {}",
                done.stderr
            );
        }
        assert_eq!(report["reason"], reason, "{what}: {message}");
        assert_eq!(
            (&report["outcome"], &report["exitCode"]),
            (&json!("BadInput"), &json!(2)),
            "{what}"
        );
        assert!(!message.contains("panicked at"), "{what}: {message}");
    }
}

#[test]
fn a_manifest_that_is_wrong_is_refused_with_the_place() {
    let unknown_field = good().text().replace("\"input\"", "\"inputt\"");
    let both_sources = good().spec("program/file", json!({"path": "a.elf"})).text();
    let other_kind = good()
        .text()
        .replace("\"kind\":\"ProofJob\"", "\"kind\":\"ProofJab\"");
    let wrong_pair = good()
        .spec("proof", json!({"system": "risc0", "kind": "Plonk"}))
        .text();
    let wrong_po2 = good().spec("segmentPo2", json!(40)).text();
    expect_all_refused(vec![
        case(
            "no YAML at all",
            "InvalidManifest",
            Job::new("{ unbalanced: ["),
            ["job.yaml"],
        ),
        case("an empty manifest", "InvalidManifest", Job::new(""), ["job.yaml"]),
        case(
            "an unknown field",
            "InvalidManifest",
            Job::new(unknown_field),
            ["job.yaml", "inputt"],
        ),
        case(
            "another kind of object",
            "InvalidManifest",
            Job::new(other_kind),
            ["ProofJab"],
        ),
        case(
            "two sources of the program",
            "InvalidManifest",
            Job::new(both_sources),
            ["exactly one source"],
        ),
        case(
            "a kind of proof of another system",
            "InvalidManifest",
            Job::new(wrong_pair),
            ["kind does not fit system"],
        ),
        case(
            "a segment size out of range",
            "InvalidManifest",
            Job::new(wrong_po2),
            ["segmentPo2"],
        ),
        case(
            "no such manifest",
            "FileNotFound",
            Job::of_file("/nowhere/job.yaml"),
            ["/nowhere/job.yaml", "Check the path"],
        ),
    ]);
}

#[test]
fn sources_that_are_wrong_are_refused_before_anything_runs() {
    let risc0 = |program: &str| Manifest::risc0("job", "Succinct", std::path::Path::new(program));
    let other_hash = "0".repeat(64);
    expect_all_refused(vec![
        case(
            "a missing program",
            "SourceNotFound",
            Job::new(risc0("missing.elf").text()),
            ["missing.elf", "program"],
        ),
        case(
            "a missing input",
            "SourceNotFound",
            Job::new(
                risc0("a.elf")
                    .spec("input/file", json!({"path": "missing.bin"}))
                    .text(),
            )
            .file("a.elf", std::fs::read(sample_program("fibonacci")).unwrap()),
            ["missing.bin", "input"],
        ),
        case(
            "a wrong hash",
            "SourceHashMismatch",
            Job::new(risc0("a.elf").spec("program/sha256", json!(other_hash)).text())
                .file("a.elf", std::fs::read(sample_program("fibonacci")).unwrap()),
            ["program", "sha256", &other_hash],
        ),
        case(
            "not an ELF",
            "InvalidProgram",
            Job::new(risc0("a.elf").text()).file("a.elf", "#!/bin/sh\n"),
            ["ELF", "program"],
        ),
        case(
            "an ELF of this machine",
            "InvalidProgram",
            Job::new(risc0("a.elf").text()).file("a.elf", std::fs::read(binary("kubectl-proof")).unwrap()),
            ["x86-64", "RISC-V"],
        ),
        case(
            "a source that only a cluster has",
            "SourceNotSupported",
            Job::new(good().text().replace(
                "\"program\":{\"inline\":\"ZW11bGF0ZWQ=\"}",
                "\"program\":{\"configMap\":{\"name\":\"a\",\"key\":\"b\"}}",
            )),
            ["configMap", "file"],
        ),
        case(
            "a missing backend",
            "BackendNotFound",
            Job::new(good().text()).arguments(["--backends-directory", "/nowhere"]),
            ["/nowhere", "make build"],
        ),
    ]);
}

#[test]
fn a_model_that_is_wrong_is_told_as_bad_input() {
    let model = Model::new(2).field("segmnts", json!(3));
    expect_all_refused(vec![case(
        "an unknown field of the model",
        "InvalidModel",
        Job::new(model.manifest("model").text()),
        ["segmnts", "not a model"],
    )]);
}

#[test]
fn a_program_that_can_not_run_to_its_end_is_told_as_bad_input() {
    let manifest = |program: &str| Manifest::risc0("job", "ExecuteOnly", &sample_program(program));
    expect_all_refused(vec![
        case(
            "a guest that panics",
            "GuestPanicked",
            Job::new(manifest("panics").text()),
            ["always panics"],
        ),
        case(
            "a guest that runs for ever",
            "CycleLimitExceeded",
            Job::new(manifest("spins").spec("maxCycles", json!(200_000)).text()),
            ["maxCycles", "200000"],
        ),
        case(
            "an input that is too short",
            "GuestPanicked",
            Job::new(
                manifest("fibonacci")
                    .spec("input", json!({"inline": "AQI="}))
                    .text(),
            ),
            ["input too short"],
        ),
    ]);
}

#[test]
fn arguments_that_are_wrong_are_told_to_scripts_too() {
    let done = Job::new(good().text())
        .arguments(["--timeout", "soon"])
        .run()
        .expect_code(2);
    assert_eq!(done.report()["reason"], "InvalidArguments");
    assert!(done.stderr.contains("90s"), "{}", done.stderr);
}
