//! Local validation against the common table of good and bad objects, and the form of the schemas.

use std::collections::BTreeSet;

use serde_json::Value;

use super::cases::{self, Case, Expected};
use super::structure::KNOWN_KEYWORDS;
use super::*;

fn checker_of(object: &Value) -> &'static Checker {
    if object["kind"] == "ProofJob" {
        proof_job_checker()
    } else {
        prover_cluster_checker()
    }
}

fn problem_with(outcome: &Result<(), Violations>, expected: Expected) -> Option<String> {
    let violations = outcome
        .as_ref()
        .err()
        .map(|violations| violations.as_slice())
        .unwrap_or_default();
    let good = match expected {
        Expected::Accepted => violations.is_empty(),
        Expected::Rule((_, message)) => violations.iter().any(|violation| violation.message == message),
        Expected::Structure { path, local, .. } => {
            violations.len() == 1 && violations[0].path == path && violations[0].message.contains(local)
        }
    };
    (!good).then(|| format!("expected {expected:?}, got {violations:#?}"))
}

fn assert_no_problems(problems: &[String]) {
    assert!(
        problems.is_empty(),
        "{} cases differ:\n{}",
        problems.len(),
        problems.join("\n")
    );
}

#[test]
fn good_objects_are_taken_and_bad_ones_refused_with_the_message_of_their_rule() {
    let cases: Vec<Case> = cases::proof_jobs()
        .into_iter()
        .chain(cases::prover_clusters())
        .collect();
    let problems: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let outcome = checker_of(&case.object).check(&case.object, None, Destination::Cluster);
            problem_with(&outcome, case.expected).map(|problem| format!("{}: {problem}", case.name))
        })
        .collect();
    assert_no_problems(&problems);
}

#[test]
fn immutable_fields_and_final_decisions_are_held_to() {
    let problems: Vec<String> = cases::updates()
        .iter()
        .filter_map(|update| {
            let outcome = checker_of(&update.new).check(&update.new, Some(&update.old), Destination::Cluster);
            problem_with(&outcome, update.expected).map(|problem| format!("{}: {problem}", update.name))
        })
        .collect();
    assert_no_problems(&problems);
}

#[test]
fn every_rule_is_broken_by_some_case() {
    let mut broken: BTreeSet<&str> = BTreeSet::new();
    for case in cases::proof_jobs().into_iter().chain(cases::prover_clusters()) {
        if let Expected::Rule((rule, _)) = case.expected {
            broken.insert(rule);
        }
    }
    for update in cases::updates() {
        if let Expected::Rule((rule, _)) = update.expected {
            broken.insert(rule);
        }
    }
    for checker in [proof_job_checker(), prover_cluster_checker()] {
        each_node(&checker.schema, "", &mut |path, node| {
            for rule in node["x-kubernetes-validations"].as_array().into_iter().flatten() {
                let expression = rule["rule"].as_str().unwrap();
                assert!(
                    broken.contains(expression),
                    "no case breaks the rule of {path}: {expression}"
                );
                let message = rule["message"].as_str().unwrap_or_default();
                assert!(
                    !message.is_empty() && !message.contains('\n'),
                    "the rule of {path} needs a message in one line"
                );
            }
        });
    }
}

#[test]
fn a_good_typed_object_is_valid_and_stays_the_same_over_json() {
    for case in cases::proof_jobs()
        .into_iter()
        .filter(|case| matches!(case.expected, Expected::Accepted))
    {
        let job: ProofJob = serde_json::from_value(case.object.clone()).unwrap();
        assert_eq!(job.validate(Destination::Cluster), Ok(()), "{}", case.name);
        let again: ProofJob = serde_json::from_value(as_json(&job)).unwrap();
        assert_eq!(again, job, "{}", case.name);
    }
    for case in cases::prover_clusters()
        .into_iter()
        .filter(|case| matches!(case.expected, Expected::Accepted))
    {
        let cluster: ProverCluster = serde_json::from_value(case.object.clone()).unwrap();
        assert_eq!(cluster.validate(), Ok(()), "{}", case.name);
        let again: ProverCluster = serde_json::from_value(as_json(&cluster)).unwrap();
        assert_eq!(again, cluster, "{}", case.name);
    }
}

#[test]
fn typed_updates_are_judged_like_json() {
    let job: ProofJob = serde_json::from_value(cases::good_proof_job()).unwrap();
    let mut managed = job.clone();
    managed.spec.managed_by = Some("kueue.x-k8s.io/multikueue".to_owned());
    let refusal = managed.validate_update(&job, Destination::Cluster).unwrap_err();
    assert_eq!(refusal.as_slice()[0].message, rules::MANAGED_BY_IS_IMMUTABLE.1);

    let cluster: ProverCluster = serde_json::from_value(cases::good_prover_cluster()).unwrap();
    let mut moved = cluster.clone();
    moved.spec.artifact_store.s3.bucket = "other".to_owned();
    let refusal = moved.validate_update(&cluster).unwrap_err();
    assert_eq!(refusal.as_slice()[0].message, rules::BUCKET_IS_IMMUTABLE.1);
}

#[test]
fn local_mode_takes_files_and_holds_to_every_other_rule() {
    let mut job: ProofJob = serde_json::from_value(cases::good_proof_job()).unwrap();
    job.spec.program = crate::Program {
        file: Some(crate::FileSource {
            path: "fibonacci".to_owned(),
        }),
        ..crate::Program::default()
    };
    assert_eq!(job.validate(Destination::LocalMode), Ok(()));
    job.spec.segment_po2 = Some(18);
    job.spec.proof.system = crate::ProofSystem::Sp1;
    job.spec.proof.kind = crate::ProofKind::Core;
    let refusal = job.validate(Destination::LocalMode).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        format!("spec: {}", rules::SEGMENT_PO2_FOR_SEGMENTS.1)
    );
}

// ---- the form of the schemas ----

/// Calls `visit` with every schema node and its path.
fn each_node(node: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, node);
    for (name, child) in node["properties"].as_object().into_iter().flatten() {
        each_node(child, &join_path(path, name), visit);
    }
    if node["items"].is_object() {
        each_node(&node["items"], &format!("{path}[]"), visit);
    }
    if node["additionalProperties"].is_object() {
        each_node(&node["additionalProperties"], &format!("{path}[*]"), visit);
    }
}

fn problems_of_schemas(problem: impl Fn(&Value) -> Option<String>) -> Vec<String> {
    let mut problems = Vec::new();
    for (kind, checker) in [
        ("ProofJob", proof_job_checker()),
        ("ProverCluster", prover_cluster_checker()),
    ] {
        each_node(&checker.schema, "", &mut |path, node| {
            if let Some(problem) = problem(node) {
                problems.push(format!("{kind} {path}: {problem}"));
            }
        });
    }
    problems
}

#[test]
fn every_string_list_and_map_is_bounded() {
    assert_no_problems(&problems_of_schemas(|node| match node["type"].as_str() {
        Some("string") => {
            let bounded =
                node["maxLength"].is_u64() || node["enum"].is_array() || node["format"] == "date-time";
            (!bounded).then(|| "a string without maxLength".to_owned())
        }
        Some("array") => (!node["maxItems"].is_u64()).then(|| "a list without maxItems".to_owned()),
        Some("object") => {
            let bounded = node["additionalProperties"].is_null() || node["maxProperties"].is_u64();
            (!bounded).then(|| "a map without maxProperties".to_owned())
        }
        Some("integer") => (node["minimum"].is_null()).then(|| "a whole number without minimum".to_owned()),
        Some("boolean") => None,
        None if node["x-kubernetes-int-or-string"] == true => {
            (!node["maxLength"].is_u64()).then(|| "a quantity without maxLength".to_owned())
        }
        other => Some(format!("unexpected type {other:?}")),
    }));
}

#[test]
fn every_list_says_how_it_merges() {
    assert_no_problems(&problems_of_schemas(|node| {
        if node["type"] != "array" {
            return None;
        }
        match node["x-kubernetes-list-type"].as_str() {
            Some("map") => {
                let required = node["items"]["required"].as_array().cloned().unwrap_or_default();
                let keys = node["x-kubernetes-list-map-keys"].as_array().unwrap();
                keys.iter()
                    .any(|key| !required.contains(key))
                    .then(|| "a key of the list-map is not required".to_owned())
            }
            Some("atomic" | "set") => None,
            other => Some(format!("list type {other:?}")),
        }
    }));
}

#[test]
fn conditions_merge_by_type() {
    for checker in [proof_job_checker(), prover_cluster_checker()] {
        let conditions = &checker.schema["properties"]["status"]["properties"]["conditions"];
        assert_eq!(conditions["x-kubernetes-list-type"], "map");
        assert_eq!(
            conditions["x-kubernetes-list-map-keys"],
            serde_json::json!(["type"])
        );
    }
}

#[test]
fn no_format_is_unknown_to_kubernetes_and_nothing_is_nullable() {
    assert_no_problems(&problems_of_schemas(|node| {
        let format = node["format"].as_str();
        if !matches!(format, None | Some("int32" | "int64" | "date-time")) {
            return Some(format!("format {format:?}"));
        }
        (!node["nullable"].is_null()).then(|| "nullable".to_owned())
    }));
}

#[test]
fn every_field_is_documented() {
    assert_no_problems(&problems_of_schemas(|node| {
        for (name, field) in node["properties"].as_object().into_iter().flatten() {
            if field["description"].as_str().is_none_or(str::is_empty)
                && !["apiVersion", "kind", "metadata"].contains(&name.as_str())
            {
                return Some(format!("field {name} without description"));
            }
        }
        None
    }));
}

#[test]
fn local_validation_knows_every_keyword_of_the_schemas() {
    assert_no_problems(&problems_of_schemas(|node| {
        let unknown: Vec<&String> = node
            .as_object()?
            .keys()
            .filter(|keyword| !KNOWN_KEYWORDS.contains(&keyword.as_str()))
            .collect();
        (!unknown.is_empty()).then(|| format!("keywords {unknown:?}"))
    }));
}
