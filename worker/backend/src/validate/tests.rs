use proptest::prelude::*;

use super::*;
use crate::protocol::{InputFile, ProofOffer, ProofReport, WithheldProof};

fn mk_description() -> BackendDescription {
    let resources = Resources {
        device_class: DeviceClass::Cpu.into(),
        ..Resources::default()
    };
    let task_type = |name: &str, lane: Lane, verifies| TaskType {
        name: name.to_owned(),
        stage: "Stage".to_owned(),
        lane: lane.into(),
        verifies,
        cacheable: name == "work",
        ..TaskType::default()
    };
    BackendDescription {
        name: "good".to_owned(),
        version: "1.0".to_owned(),
        attempts_at_once: 1,
        proofs: vec![ProofOffer {
            system: "good".to_owned(),
            kind: "Any".to_owned(),
            root_task_type: "plan".to_owned(),
            parent_chain: vec![resources],
            largest_leaf: Some(resources),
        }],
        task_types: vec![
            task_type("plan", Lane::Control, false),
            task_type("work", Lane::Device, false),
            task_type("verify", Lane::Device, true),
        ],
        withheld: vec![WithheldProof {
            system: "good".to_owned(),
            kind: "Other".to_owned(),
            reason: "CircuitsMissing".to_owned(),
            message: "there are no circuits at /circuits".to_owned(),
        }],
        ..BackendDescription::default()
    }
}

fn mk_submission() -> TaskSubmission {
    TaskSubmission {
        request_id: "work-0".to_owned(),
        task_type: "work".to_owned(),
        resources: Some(Resources {
            device_class: DeviceClass::Gpu.into(),
            ..Resources::default()
        }),
        inputs: vec!["segment-0".to_owned()],
        outputs: vec!["receipt-0".to_owned()],
        cache_key: "work:abc".to_owned(),
        ..TaskSubmission::default()
    }
}

fn mk_run() -> RunAttempt {
    let input = InputFile {
        name: "segment-0".to_owned(),
        path: "/tmp/segment-0".to_owned(),
        ..InputFile::default()
    };
    RunAttempt {
        attempt_id: 1,
        task_type: "work".to_owned(),
        directory: "/tmp".to_owned(),
        inputs: vec![input],
        outputs: vec!["receipt-0".to_owned()],
        dependency_results: vec![vec![0; MAX_OPAQUE_BYTES]],
        parameters: vec![0; MAX_OPAQUE_BYTES],
        ..RunAttempt::default()
    }
}

type Mutation<T> = (&'static str, fn(&mut T));

fn each_mutation_is_refused<T: Clone>(
    good: &T,
    validate: impl Fn(&T) -> Result<(), ValidationError>,
    mutations: &[Mutation<T>],
) {
    assert_eq!(validate(good), Ok(()));
    for (category, mutate) in mutations {
        let mut bad = good.clone();
        mutate(&mut bad);
        match validate(&bad) {
            Err(error) => assert_eq!(error.category(), *category, "{error}"),
            Ok(()) => panic!("a mutation was accepted that should be refused as {category}"),
        }
    }
}

#[test]
fn each_fault_of_a_description_is_refused() {
    each_mutation_is_refused(
        &mk_description(),
        description,
        &[
            ("InvalidName", |bad| bad.name = "no spaces".to_owned()),
            ("InvalidValue", |bad| bad.version.clear()),
            ("InvalidValue", |bad| bad.attempts_at_once = 0),
            ("InvalidValue", |bad| bad.attempts_at_once = 65),
            ("InvalidValue", |bad| bad.hang_after_ms = 100),
            ("TooMany", |bad| {
                bad.task_types = vec![bad.task_types[0].clone(); 65];
            }),
            ("TooMany", |bad| bad.proofs = vec![bad.proofs[0].clone(); 65]),
            ("Repeated", |bad| bad.task_types.push(bad.task_types[0].clone())),
            ("Repeated", |bad| bad.proofs.push(bad.proofs[0].clone())),
            ("InvalidName", |bad| bad.task_types[0].name = "../plan".to_owned()),
            ("InvalidName", |bad| bad.task_types[0].stage.clear()),
            ("FieldMissing", |bad| bad.task_types[0].lane = 0),
            ("Undeclared", |bad| {
                bad.proofs[0].root_task_type = "other".to_owned();
            }),
            ("InvalidValue", |bad| {
                bad.proofs[0].root_task_type = "work".to_owned();
            }),
            ("FieldMissing", |bad| bad.proofs[0].parent_chain.clear()),
            ("FieldMissing", |bad| {
                bad.proofs[0].parent_chain[0].device_class = 0;
            }),
            ("FieldMissing", |bad| bad.proofs[0].largest_leaf = None),
            ("TooMany", |bad| {
                bad.withheld = vec![bad.withheld[0].clone(); 65];
            }),
            ("Repeated", |bad| bad.withheld.push(bad.withheld[0].clone())),
            ("Repeated", |bad| {
                bad.withheld[0].system.clone_from(&bad.proofs[0].system);
                bad.withheld[0].kind.clone_from(&bad.proofs[0].kind);
            }),
            ("InvalidName", |bad| bad.withheld[0].kind.clear()),
            ("InvalidValue", |bad| {
                bad.withheld[0].reason = "circuits missing".to_owned();
            }),
            ("FieldMissing", |bad| bad.withheld[0].message.clear()),
            ("TooLarge", |bad| bad.withheld[0].message = "a".repeat(1025)),
        ],
    );
}

#[test]
fn each_fault_of_a_submission_is_refused() {
    each_mutation_is_refused(
        &mk_submission(),
        |task| submission(&mk_description(), task),
        &[
            ("InvalidName", |bad| bad.request_id = "a/b".to_owned()),
            ("InvalidName", |bad| bad.inputs[0] = "..".to_owned()),
            ("InvalidName", |bad| {
                bad.outputs[0] = "../../etc/passwd".to_owned();
            }),
            ("InvalidName", |bad| bad.depends_on.push(String::new())),
            ("Undeclared", |bad| bad.task_type = "other".to_owned()),
            ("TooLarge", |bad| bad.parameters = vec![0; MAX_OPAQUE_BYTES + 1]),
            ("TooLarge", |bad| {
                bad.cache_key = "k".repeat(MAX_CACHE_KEY_BYTES + 1);
            }),
            ("TooMany", |bad| {
                bad.inputs = vec![String::new(); MAX_TASK_ARTIFACTS + 1];
            }),
            ("Repeated", |bad| bad.inputs.push("segment-0".to_owned())),
            ("Repeated", |bad| bad.outputs.push("receipt-0".to_owned())),
            ("FieldMissing", |bad| bad.resources = None),
            ("FieldMissing", |bad| bad.resources = Some(Resources::default())),
            ("InvalidProofReport", |bad| bad.concludes_job = true),
            ("InvalidValue", |bad| bad.task_type = "verify".to_owned()),
        ],
    );
}

#[test]
fn a_marker_needs_neither_type_nor_resources() {
    let marker = TaskSubmission {
        request_id: "marker".to_owned(),
        marker: true,
        ..TaskSubmission::default()
    };
    assert_eq!(submission(&mk_description(), &marker), Ok(()));
}

#[test]
fn request_ids_repeat_in_no_request_and_requests_have_a_largest_size() {
    let twice = SubmitTasksRequest {
        attempt_id: 1,
        tasks: vec![mk_submission(), mk_submission()],
    };
    assert_eq!(
        submit_tasks(&mk_description(), &twice).map_err(|error| error.category()),
        Err("Repeated")
    );
    let large = (0..40).map(|number| TaskSubmission {
        request_id: format!("work-{number}"),
        parameters: vec![0; MAX_OPAQUE_BYTES],
        ..mk_submission()
    });
    let large = SubmitTasksRequest {
        attempt_id: 1,
        tasks: large.collect(),
    };
    assert_eq!(
        submit_tasks(&mk_description(), &large).map_err(|error| error.category()),
        Err("TooLarge")
    );
}

#[test]
fn each_fault_of_an_attempt_is_refused() {
    each_mutation_is_refused(
        &mk_run(),
        run_attempt,
        &[
            ("InvalidName", |bad| bad.task_type.clear()),
            ("InvalidName", |bad| bad.inputs[0].name = "a b".to_owned()),
            ("InvalidName", |bad| bad.outputs[0] = ".hidden".to_owned()),
            ("InvalidValue", |bad| bad.directory = "relative".to_owned()),
            ("TooLarge", |bad| bad.parameters.push(0)),
            ("TooLarge", |bad| bad.dependency_results[0].push(0)),
            ("Repeated", |bad| bad.inputs.push(bad.inputs[0].clone())),
            ("Repeated", |bad| bad.outputs.push(bad.outputs[0].clone())),
        ],
    );
}

#[test]
fn a_proof_report_comes_from_verifying_tasks_and_from_no_other() {
    let description = mk_description();
    let verify = description.task_type("verify").expect("declared");
    let proof = ProofReport {
        proof: "proof".to_owned(),
        public_values: "public-values".to_owned(),
        ..ProofReport::default()
    };
    let good = AttemptCompleted {
        proof: Some(proof),
        ..AttemptCompleted::default()
    };
    each_mutation_is_refused(
        &good,
        |message| completed(verify, message),
        &[
            ("InvalidProofReport", |bad| bad.proof = None),
            ("TooLarge", |bad| bad.result = vec![0; MAX_OPAQUE_BYTES + 1]),
            ("InvalidName", |bad| bad.proof = Some(ProofReport::default())),
        ],
    );
    let work = description.task_type("work").expect("declared");
    assert_eq!(
        completed(work, &good).map_err(|error| error.category()),
        Err("InvalidProofReport")
    );
}

#[test]
fn each_fault_of_a_failure_is_refused() {
    let good = AttemptFailed {
        class: FailureClass::Fatal.into(),
        reason: "GuestPanicked".to_owned(),
        message: "it panicked".to_owned(),
        ..AttemptFailed::default()
    };
    each_mutation_is_refused(
        &good,
        failed,
        &[
            ("FieldMissing", |bad| bad.class = 0),
            ("FieldMissing", |bad| bad.class = 99),
            ("InvalidValue", |bad| bad.reason = "guest panicked".to_owned()),
            ("InvalidValue", |bad| bad.reason.clear()),
            ("TooLarge", |bad| {
                bad.message = "m".repeat(MAX_FAILURE_MESSAGE_BYTES + 1);
            }),
        ],
    );
}

#[test]
fn a_version_that_is_not_ours_is_refused_with_both_versions() {
    assert_eq!(protocol_version(PROTOCOL_VERSION), Ok(()));
    let error = protocol_version(9).expect_err("refused").to_string();
    assert!(
        error.contains("version 9") && error.contains("version 1"),
        "{error}"
    );
}

#[test]
fn outputs_are_plain_files_inside_the_directory() {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = folder.path().join("attempt");
    std::fs::create_dir_all(directory.join("folder")).expect("a folder");
    std::fs::write(directory.join("good"), "bytes").expect("a file");
    std::fs::write(folder.path().join("secret"), "secret").expect("a file");
    std::os::unix::fs::symlink(folder.path().join("secret"), directory.join("link")).expect("a link");
    std::os::unix::fs::symlink(folder.path(), directory.join("way")).expect("a link");
    let check = |path: &Path| {
        let outputs = [OutputFile {
            name: "out".to_owned(),
            path: path.display().to_string(),
        }];
        output_files(&directory, &["out".to_owned()], &outputs).map_err(|error| error.category())
    };
    assert!(check(&directory.join("good")).is_ok());
    assert_eq!(check(&directory.join("folder")), Err("OutputMissing"));
    assert_eq!(check(&directory.join("nothing")), Err("OutputMissing"));
    for escape in ["../secret", "link", "way/secret", "folder/../../secret"] {
        assert_eq!(
            check(&directory.join(escape)),
            Err("OutputOutsideDirectory"),
            "{escape}"
        );
    }
    let named = |name: &str| OutputFile {
        name: name.to_owned(),
        path: directory.join("good").display().to_string(),
    };
    let categories = |declared: &[&str], outputs: &[OutputFile]| {
        let declared: Vec<String> = declared.iter().map(|name| (*name).to_owned()).collect();
        output_files(&directory, &declared, outputs)
            .map(|files| files.len())
            .map_err(|error| error.category())
    };
    assert_eq!(categories(&["a", "b"], &[named("b"), named("a")]), Ok(2));
    assert_eq!(categories(&["a", "b"], &[named("a")]), Err("OutputMissing"));
    assert_eq!(categories(&["a"], &[named("a"), named("b")]), Err("Undeclared"));
    assert_eq!(categories(&["a"], &[named("a"), named("a")]), Err("Repeated"));
}

proptest! {
    #[test]
    fn an_accepted_name_is_one_safe_path_component(text in "\\PC{0,140}|[a-z./:-]{0,20}") {
        if name("artifact", &text).is_ok() {
            let components: Vec<_> = Path::new(&text).components().collect();
            prop_assert_eq!(components, [std::path::Component::Normal(text.as_ref())]);
            prop_assert!(text.len() <= MAX_NAME_BYTES);
        }
    }

    #[test]
    fn usual_names_are_accepted(text in "[A-Za-z0-9][A-Za-z0-9._:-]{0,127}") {
        prop_assert_eq!(name("artifact", &text), Ok(()));
    }
}
