//! Reading manifests.

use crate::*;

const GOOD: &str = "\
apiVersion: proving.rs/v1alpha1
kind: ProofJob
metadata:
  name: fibonacci
  labels:
    app.kubernetes.io/name: fibonacci
spec:
  program:
    file:
      path: programs/fibonacci
  input:
    text: '5'
  proof:
    system: risc0
    kind: Succinct
  segmentPo2: 16
";

fn refusal(yaml: &str) -> ManifestError {
    parse_proof_job(yaml).expect_err("the manifest should have been refused")
}

fn only_violation(yaml: &str) -> (String, String, Option<(u64, u64)>) {
    let error = refusal(yaml);
    let [violation] = error.violations() else {
        panic!("one violation was expected: {error}")
    };
    let position = violation
        .position
        .map(|position| (position.line, position.column));
    (violation.path.clone(), violation.message.clone(), position)
}

#[test]
fn a_good_manifest_is_read() {
    let job = parse_proof_job(GOOD).unwrap();
    assert_eq!(job.metadata.name.as_deref(), Some("fibonacci"));
    assert_eq!(
        job.spec.program.place(),
        Some(Place::File(&FileSource {
            path: "programs/fibonacci".to_owned()
        }))
    );
    assert_eq!(
        job.spec.input.as_ref().and_then(Input::place),
        Some(Place::Text("5"))
    );
    assert_eq!(
        job.spec.proof,
        ProofSpec {
            system: ProofSystem::Risc0,
            kind: ProofKind::Succinct,
            backend: None,
        }
    );
    assert_eq!(job.spec.cluster_ref, ClusterReference::default());
    assert_eq!(job.spec.segment_po2, Some(16));
    assert!(!job.spec.suspend);
}

#[test]
fn comments_and_a_leading_marker_do_no_harm() {
    let yaml = format!("# a comment\n---\n{GOOD}\n# the end\n");
    assert_eq!(parse_proof_job(&yaml), parse_proof_job(GOOD));
}

#[test]
fn json_is_yaml() {
    let json = serde_json::to_string(&parse_proof_job(GOOD).unwrap()).unwrap();
    assert_eq!(parse_proof_job(&json), parse_proof_job(GOOD));
}

#[test]
fn an_unknown_field_is_told_with_path_place_and_the_name_that_was_meant() {
    let (path, message, position) =
        only_violation(&GOOD.replace("    kind: Succinct", "    kind: Succinct\n    knd: Groth16"));
    assert_eq!(path, "spec.proof.knd");
    assert_eq!(message, "unknown field `knd`: did you mean `kind`?");
    assert_eq!(position, Some((16, 5)));
}

#[test]
fn an_unknown_field_at_the_top_is_told_too() {
    let (path, message, position) = only_violation(&format!("{GOOD}sepc: {{}}\n"));
    assert_eq!((path.as_str(), position), ("sepc", Some((17, 1))));
    assert_eq!(message, "unknown field `sepc`: did you mean `spec`?");
}

#[test]
fn an_unknown_field_of_metadata_is_told_too() {
    let (path, message, position) = only_violation(&GOOD.replace("  labels:", "  lables:"));
    assert_eq!((path.as_str(), position), ("metadata.lables", Some((5, 3))));
    assert_eq!(message, "unknown field `lables`: did you mean `labels`?");
}

#[test]
fn a_field_at_the_wrong_place_is_told_where_it_belongs() {
    let (path, message, position) = only_violation(&format!("{GOOD}  key: a\n"));
    assert_eq!((path.as_str(), position), ("spec.key", Some((17, 3))));
    assert!(
        message.starts_with("unknown field `key`: did you mean `spec."),
        "{message}"
    );
}

#[test]
fn all_mistakes_are_told_at_once() {
    let yaml = GOOD
        .replace("segmentPo2: 16", "segmentPo2: 99")
        .replace("risc0", "risc1");
    let error = refusal(&yaml);
    let paths: Vec<&str> = error
        .violations()
        .iter()
        .map(|violation| violation.path.as_str())
        .collect();
    assert_eq!(paths, ["spec.proof.system", "spec.segmentPo2"]);
    let text = error.to_string();
    assert!(
        text.contains("spec.segmentPo2 (line 16, column 3): 99 is too large, at most 24 is allowed"),
        "{text}"
    );
    assert_eq!(error.category(), "ManifestInvalid");
}

#[test]
fn a_broken_rule_is_told_with_the_place_of_its_object() {
    let (path, message, position) = only_violation(&GOOD.replace("kind: Succinct", "kind: Core"));
    assert_eq!(
        (path.as_str(), message.as_str()),
        ("spec.proof", rules::KIND_FITS_SYSTEM.1)
    );
    assert_eq!(position, Some((13, 3)));
}

#[test]
fn a_missing_field_is_told_with_what_it_is_for() {
    let (path, message, position) = only_violation(&GOOD.replace("    system: risc0\n", ""));
    assert_eq!((path.as_str(), position), ("spec.proof.system", Some((13, 3))));
    assert!(
        message.starts_with("is required (The proof system: `risc0` (RISC Zero), "),
        "{message}"
    );
}

#[test]
fn a_missing_name_is_told() {
    let (path, message, _) = only_violation(&GOOD.replace("  name: fibonacci\n", ""));
    assert_eq!(
        (path.as_str(), message.as_str()),
        ("metadata.name", "is required: give the object a name")
    );
}

#[test]
fn a_name_that_kubernetes_would_refuse_is_refused() {
    let (path, message, position) = only_violation(&GOOD.replacen("name: fibonacci", "name: Fibonacci_1", 1));
    assert_eq!((path.as_str(), position), ("metadata.name", Some((4, 3))));
    assert!(message.contains("\"Fibonacci_1\" is no valid name"), "{message}");
}

#[test]
fn an_empty_value_is_refused_instead_of_taken_for_the_default() {
    let (path, message, position) = only_violation(&GOOD.replace("segmentPo2: 16", "segmentPo2:"));
    assert_eq!((path.as_str(), position), ("spec.segmentPo2", Some((16, 3))));
    assert!(
        message.starts_with("is empty: write a whole number, or leave the line out"),
        "{message}"
    );
}

#[test]
fn a_cluster_refuses_files() {
    let error = parse_proof_job_for_cluster(GOOD).unwrap_err();
    assert_eq!(error.violations()[0].message, rules::FILE_ONLY_IN_LOCAL_MODE.1);
    assert_eq!(error.violations()[0].path, "spec.program");
}

#[test]
fn several_documents_are_refused() {
    let error = refusal(&format!("{GOOD}---\n{GOOD}"));
    assert_eq!(error, ManifestError::SeveralDocuments);
}

#[test]
fn an_empty_manifest_is_refused() {
    assert_eq!(refusal("# nothing\n"), ManifestError::Empty { kind: "ProofJob" });
    assert_eq!(refusal(""), ManifestError::Empty { kind: "ProofJob" });
}

#[test]
fn another_kind_or_version_is_refused_with_its_place() {
    let error = refusal(&GOOD.replace("kind: ProofJob", "kind: ProverCluster"));
    assert_eq!(
        error.to_string(),
        "the manifest holds a ProverCluster of proving.rs/v1alpha1 (line 2, column 1): it must begin with apiVersion: proving.rs/v1alpha1 and kind: ProofJob"
    );
    let error = refusal(&GOOD.replace("v1alpha1", "v1"));
    assert!(
        error
            .to_string()
            .starts_with("the manifest holds a ProofJob of proving.rs/v1 (line 1, column 1)"),
        "{error}"
    );
    let error = refusal("- a\n- b\n");
    assert!(
        error
            .to_string()
            .starts_with("the manifest holds something without apiVersion and kind"),
        "{error}"
    );
}

#[test]
fn broken_yaml_is_told_with_its_place() {
    let error = refusal(&GOOD.replace("  proof:", " proof:"));
    let ManifestError::Syntax {
        position: Some(position),
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert!((12..=14).contains(&position.line), "{error}");
}

#[test]
fn a_key_given_twice_is_refused() {
    let error = refusal(&format!("{GOOD}  segmentPo2: 17\n"));
    assert!(matches!(error, ManifestError::Syntax { .. }), "{error:?}");
    assert!(error.to_string().contains("segmentPo2"), "{error}");
}

#[test]
fn a_manifest_of_many_megabytes_is_refused_before_it_is_parsed() {
    let error = refusal(&"a".repeat(LARGEST_MANIFEST + 1));
    assert_eq!(
        error,
        ManifestError::TooLarge {
            size: LARGEST_MANIFEST + 1
        }
    );
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut yaml = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (name, before) in ('b'..='l').zip('a'..) {
        let aliases = vec![format!("*{before}"); 10].join(",");
        yaml.push_str(&format!("{name}: &{name} [{aliases}]\n"));
    }
    assert!(matches!(refusal(&yaml), ManifestError::Syntax { .. }));
}

#[test]
fn a_prover_cluster_is_read_the_same_way() {
    let yaml = "\
apiVersion: proving.rs/v1alpha1
kind: ProverCluster
metadata: { name: default }
spec:
  artifactStore: { s3: { bucket: proofs } }
  backends: [{ name: risc0, system: risc0, image: 'example.com/risc0:1' }]
  workerGroups:
  - { name: gpu, backend: risc0, device: { gpu: { count: 2 } }, resources: { cpu: 8, memory: 32Gi } }
";
    let cluster = parse_prover_cluster(yaml).unwrap();
    let memory = cluster.spec.worker_groups[0]
        .resources
        .as_ref()
        .and_then(|resources| resources.memory.clone());
    assert_eq!(memory.and_then(|memory| memory.units()), Some(32 << 30));
    let error = parse_prover_cluster(&yaml.replace("backend: risc0", "backend: sp1")).unwrap_err();
    assert_eq!(error.violations()[0].message, rules::GROUPS_NAME_A_BACKEND.1);
}
