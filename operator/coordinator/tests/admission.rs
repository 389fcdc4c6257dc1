//! What is refused before any worker sees it, each with what was wrong, where, and what to do.

mod support;

use std::sync::Arc;

use prover_coordinator::{
    AdmissionError, ClusterSources, CoordinatorError, FetchedSource, RemoteError, RemoteProblem,
    SourceAccess, SourceRequest, start,
};
use prover_crds::{FileSource, HttpSource, Input, KeyReference, ProofJob, ProofKind, ProofSystem, S3Source};
use support::{Fixture, mk_config, mk_file_job, mk_fixture, mk_fixture_with, mk_job, mk_job_of};

const X86_64: [u8; 20] = [
    0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 62, 0,
];

/// A cluster that has no sources at all.
#[derive(Debug)]
struct NoSources;

#[async_trait::async_trait]
impl ClusterSources for NoSources {
    async fn fetch(&self, _: SourceRequest<'_>) -> Result<FetchedSource, RemoteError> {
        Err(RemoteError {
            problem: RemoteProblem::NotFound,
            message: "there is nothing".to_owned(),
        })
    }
}

fn mk_input_job(input: Input) -> ProofJob {
    let mut job = mk_job("input");
    job.spec.input = Some(input);
    job
}

#[track_caller]
fn assert_refusal(error: &AdmissionError, reason: &str, parts: &[&str]) {
    let message = error.to_string();
    assert_eq!(error.reason(), reason, "{message}");
    assert!(error.bad_input(), "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

async fn refuse_with_file(name: &str, bytes: &[u8]) -> AdmissionError {
    let fixture = mk_fixture().await;
    fixture.write(name, bytes);
    fixture.refuse(mk_file_job("bad", name)).await
}

#[tokio::test]
async fn a_missing_program_is_told_with_the_folder_that_was_looked_in() {
    let fixture = mk_fixture().await;
    let error = fixture.refuse(mk_file_job("bad", "guests/fibonacci.elf")).await;
    let folder = fixture.folder.path().display().to_string();
    let parts = [
        "spec.program.file.path",
        "\"guests/fibonacci.elf\"",
        &folder,
        "correct the path",
    ];
    assert_refusal(&error, "SourceNotFound", &parts);
}

#[tokio::test]
async fn a_folder_is_no_program() {
    let fixture = mk_fixture().await;
    let error = fixture.refuse(mk_file_job("bad", ".")).await;
    assert_refusal(
        &error,
        "SourceUnreadable",
        &["\".\" is a folder, not a regular file"],
    );
}

#[tokio::test]
async fn a_pipe_is_refused_and_not_waited_for() {
    let fixture = mk_fixture().await;
    let path = fixture.folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    let error = fixture.refuse(mk_file_job("bad", "pipe")).await;
    assert_refusal(
        &error,
        "SourceUnreadable",
        &["is a device, pipe or socket, not a regular file"],
    );
}

#[tokio::test]
async fn a_program_for_another_machine_is_named_with_what_it_is() {
    let error = refuse_with_file("hello", &X86_64).await;
    let parts = [
        "spec.program: file \"hello\" is an x86-64 ELF",
        "32-bit RISC-V",
        "cargo risczero build",
    ];
    assert_refusal(&error, "InvalidProgram", &parts);
}

#[tokio::test]
async fn a_text_file_is_no_program() {
    let error = refuse_with_file("main.rs", b"fn main() {}\n").await;
    assert_refusal(&error, "InvalidProgram", &["file \"main.rs\" is a text file"]);
}

#[tokio::test]
async fn an_empty_program_is_told() {
    let error = refuse_with_file("empty.elf", b"").await;
    assert_refusal(&error, "InvalidProgram", &["file \"empty.elf\" is empty"]);
}

#[tokio::test]
async fn a_wrong_hash_is_told_with_both_hashes() {
    let fixture = mk_fixture().await;
    fixture.write("guest.bin", b"R0BF\x01\0\0\0");
    let mut job = mk_file_job("bad", "guest.bin");
    let expected = "ab".repeat(32);
    job.spec.program.sha256 = Some(expected.clone());
    let error = fixture.refuse(job.clone()).await;
    let found = prover_artifacts::Sha256::of(b"R0BF\x01\0\0\0").to_string();
    assert_refusal(
        &error,
        "SourceHashMismatch",
        &["spec.program.sha256", "file \"guest.bin\"", &expected, &found],
    );
    // The right one is taken.
    job.spec.program.sha256 = Some(found);
    fixture.submit(job).await;
}

#[tokio::test]
async fn sources_that_are_too_large_are_told_with_both_sizes() {
    let fixture = mk_fixture_with(|config| {
        config.program_bytes = 8;
        config.input_bytes = 4;
    })
    .await;
    fixture.write("guest.bin", b"R0BF\x01\0\0\0 and more");
    let error = fixture.refuse(mk_file_job("bad", "guest.bin")).await;
    assert_refusal(
        &error,
        "SourceTooLarge",
        &["spec.program: file \"guest.bin\" has 17 bytes, more than the 8"],
    );
    let error = fixture
        .refuse(mk_input_job(Input {
            text: Some("12345".to_owned()),
            ..Input::default()
        }))
        .await;
    assert_refusal(
        &error,
        "SourceTooLarge",
        &["spec.input: the inline text has 5 bytes, more than the 4"],
    );
}

#[tokio::test]
async fn sources_that_local_mode_has_not_are_refused_with_what_to_do() {
    let fixture = mk_fixture().await;
    let key = || {
        Some(KeyReference {
            name: "object".to_owned(),
            key: "input".to_owned(),
        })
    };
    let http = HttpSource {
        url: "https://example.com/input".to_owned(),
        token_ref: None,
    };
    let bucket = S3Source {
        bucket: Some("inputs".to_owned()),
        key: "one".to_owned(),
        anonymous: true,
        ..S3Source::default()
    };
    let cases = [
        (
            "http",
            Input {
                http: Some(http),
                ..Input::default()
            },
        ),
        (
            "configMap",
            Input {
                config_map: key(),
                ..Input::default()
            },
        ),
        (
            "secret",
            Input {
                secret: key(),
                ..Input::default()
            },
        ),
        (
            "s3.bucket",
            Input {
                s3: Some(bucket),
                ..Input::default()
            },
        ),
    ];
    for (field, input) in cases {
        let error = fixture.refuse(mk_input_job(input)).await;
        let start = format!("spec.input.{field} can't be read in local mode");
        assert_refusal(&error, "SourceNotSupported", &[&start, "name it as `file`"]);
    }
}

#[tokio::test]
async fn a_file_of_this_machine_is_none_of_a_clusters_business() {
    let fixture = mk_fixture().await;
    fixture.write("guest.bin", b"R0BF\x01\0\0\0");
    let job = mk_file_job("bad", "guest.bin");
    let error = fixture
        .coordinator
        .submit(job, SourceAccess::Cluster(Arc::new(NoSources)))
        .await
        .unwrap_err();
    assert_refusal(&error, "InvalidSpec", &["file is for local mode"]);
}

#[tokio::test]
async fn a_key_of_the_store_is_read_below_the_inputs_of_its_namespace() {
    let fixture = mk_fixture().await;
    let source = |key: &str| Input {
        s3: Some(S3Source {
            key: key.to_owned(),
            ..S3Source::default()
        }),
        ..Input::default()
    };
    let error = fixture.refuse(mk_input_job(source("block"))).await;
    assert_refusal(
        &error,
        "SourceNotFound",
        &["spec.input.s3", "inputs/default/block"],
    );
    let key = prover_artifacts::Key::new("inputs/default/block").unwrap();
    let condition = prover_artifacts::Condition::CreateOnly;
    fixture
        .store
        .put_bytes(&key, bytes::Bytes::from_static(b"block"), condition)
        .await
        .unwrap();
    fixture.submit(mk_input_job(source("block"))).await;
    let copied = prover_artifacts::Key::new("jobs/uid-input/sources/input").unwrap();
    assert_eq!(
        fixture
            .store
            .get_bytes(&copied, None, 100)
            .await
            .unwrap()
            .as_ref(),
        b"block"
    );
}

#[tokio::test]
async fn rules_of_the_resource_type_are_told_in_its_own_words() {
    let fixture = mk_fixture().await;
    type Change = fn(&mut ProofJob);
    let cases: [(Change, &str); 6] = [
        (
            |job| job.spec.proof.kind = ProofKind::Plonk,
            "kind does not fit system",
        ),
        (|job| job.spec.max_cycles = Some(0), "spec.maxCycles"),
        (|job| job.spec.segment_po2 = Some(99), "spec.segmentPo2"),
        (
            |job| job.spec.program.inline = None,
            "name exactly one source of the program",
        ),
        (
            |job| job.spec.program.inline = Some("no base64!".to_owned()),
            "inline must be base64",
        ),
        (
            |job| job.metadata.uid = Some("../escape".to_owned()),
            "metadata.uid",
        ),
    ];
    for (change, expected) in cases {
        let mut job = mk_job_of("bad", ProofSystem::Risc0, ProofKind::Succinct);
        change(&mut job);
        assert_refusal(&fixture.refuse(job).await, "InvalidSpec", &[expected]);
    }
}

#[tokio::test]
async fn a_job_of_another_controller_is_left_alone() {
    let fixture = mk_fixture().await;
    let mut job = mk_job("foreign");
    job.spec.managed_by = Some("example.com/other".to_owned());
    assert_refusal(
        &fixture.refuse(job).await,
        "NotSupported",
        &["spec.managedBy", "example.com/other"],
    );
}

#[tokio::test]
async fn the_same_uid_with_other_bytes_is_refused() {
    let fixture = mk_fixture().await;
    fixture
        .submit(mk_input_job(Input {
            text: Some("one".to_owned()),
            ..Input::default()
        }))
        .await;
    let error = fixture
        .refuse(mk_input_job(Input {
            text: Some("two".to_owned()),
            ..Input::default()
        }))
        .await;
    assert_refusal(
        &error,
        "SourceHashMismatch",
        &["spec.input", "uid-input", "another uid"],
    );
}

#[tokio::test]
async fn a_refused_job_leaves_no_sources_behind() {
    let fixture = mk_fixture().await;
    let _worker = support::FakeWorker::connect_risc0(&fixture, "worker").await;
    fixture
        .refuse(mk_job_of("left", ProofSystem::Risc0, ProofKind::Groth16))
        .await;
    let program = support::store_path(&fixture).join("jobs/uid-left/sources/program");
    let gone = async {
        while support::exists(&program) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(support::SOON, gone).await.unwrap();
}

async fn start_error(
    fixture: &Fixture,
    change: impl FnOnce(&mut prover_coordinator::CoordinatorConfig),
) -> String {
    let mut config = mk_config();
    change(&mut config);
    match start(config, Arc::clone(&fixture.store)).await {
        Ok(_) => panic!("the coordinator started"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_configuration_without_sense_is_refused_at_start() {
    let fixture = mk_fixture().await;
    let message = start_error(&fixture, |config| config.outbound_messages = 0).await;
    assert!(message.contains("outbound_messages"), "{message}");
    let message = start_error(&fixture, |config| {
        config.heartbeat_interval = std::time::Duration::ZERO;
    })
    .await;
    assert!(message.contains("heartbeat_interval"), "{message}");
    let message = start_error(&fixture, |config| config.artifact_prefix = "a//b".to_owned()).await;
    assert!(message.contains("artifact_prefix"), "{message}");
    let message = start_error(&fixture, |config| config.listen = fixture.coordinator.address()).await;
    assert!(
        message.contains(&fixture.coordinator.address().to_string()),
        "{message}"
    );
}

#[tokio::test]
async fn a_store_that_can_not_be_written_is_refused_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    std::fs::create_dir(&path).unwrap();
    let store = prover_artifacts::open(&format!("file://{}", path.display()))
        .await
        .unwrap();
    // Nothing can be written below a file, not even by root.
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::write(&path, b"no folder").unwrap();
    let error = start(mk_config(), store).await.unwrap_err();
    assert!(matches!(error, CoordinatorError::StoreUnusable { .. }), "{error}");
    assert!(
        error.to_string().contains("the artifact store can't be used"),
        "{error}"
    );
}

#[tokio::test]
async fn a_prefix_comes_before_all_keys() {
    let fixture = mk_fixture_with(|config| config.artifact_prefix = "team/proofs".to_owned()).await;
    fixture.write("guest.bin", b"R0BF\x01\0\0\0");
    fixture.submit(mk_file_job("prefixed", "guest.bin")).await;
    let file = FileSource {
        path: "guest.bin".to_owned(),
    };
    assert!(fixture.folder.path().join(file.path).exists());
    let key = prover_artifacts::Key::new("team/proofs/jobs/uid-prefixed/sources/program").unwrap();
    assert_eq!(fixture.store.stat(&key).await.unwrap().size_bytes, 8);
}
