//! The generated files.

use std::path::Path;

use crate::{generated_files, proof_job_crd, prover_cluster_crd};

/// Client-side apply stores the whole object in an annotation of at most 262,144 bytes.
const LARGEST_CRD: usize = 200_000;

#[test]
fn the_committed_files_are_what_the_types_say() {
    for file in generated_files() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file.name);
        let present = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            present == file.contents,
            "{} is stale: run `make crds` and commit the result",
            path.display()
        );
    }
}

#[test]
fn each_definition_fits_into_the_annotation_of_client_side_apply() {
    for definition in [proof_job_crd(), prover_cluster_crd()] {
        let size = serde_json::to_string(&definition).unwrap().len();
        assert!(
            size < LARGEST_CRD,
            "{:?} has {size} bytes",
            definition.metadata.name
        );
    }
    for file in generated_files() {
        assert!(
            file.contents.len() < LARGEST_CRD,
            "{} has {} bytes",
            file.name,
            file.contents.len()
        );
    }
}

#[test]
fn names_are_those_that_users_type() {
    let names = proof_job_crd().spec.names;
    assert_eq!(
        (names.plural.as_str(), names.singular.as_deref()),
        ("proofjobs", Some("proofjob"))
    );
    assert_eq!(names.short_names, Some(vec!["pj".to_owned()]));
    let names = prover_cluster_crd().spec.names;
    assert_eq!(
        (names.plural.as_str(), names.singular.as_deref()),
        ("proverclusters", Some("provercluster"))
    );
    assert_eq!(names.short_names, Some(vec!["pcl".to_owned()]));
}

#[test]
fn status_is_a_subresource_of_both() {
    for definition in [proof_job_crd(), prover_cluster_crd()] {
        let subresources = definition.spec.versions[0].subresources.clone().unwrap();
        assert!(subresources.status.is_some());
        assert!(
            subresources.scale.is_none(),
            "paths through arrays are not allowed, so there is nothing to scale"
        );
    }
}
