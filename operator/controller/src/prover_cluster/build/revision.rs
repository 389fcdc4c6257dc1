//! A group's Deployment: one per revision of its pods, never changed afterwards. And which image it runs, where the
//! specification leaves it open.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use prover_crds::names;

use super::metadata::{Labels, group_selector, hash, labels, matching, owned};
use super::{Creation, Kind, Manifest, Surroundings, coordinator, pod};
use crate::prover_cluster::validate::{Group, Image, ValidatedCluster};

/// Annotation of a Deployment: hash of its pods as the specification wants them, whatever the image of the operator's
/// own processes.
pub const SPECIFICATION_ANNOTATION: &str = "proving.rs/specification-hash";
/// Annotation of a Deployment: the image of the operator's own process in it.
pub const IMAGE_ANNOTATION: &str = "proving.rs/image";
/// Annotation of a worker Deployment: the backend version that its workers told last.
pub const BACKEND_VERSION_ANNOTATION: &str = "proving.rs/backend-version";
/// Digits of a revision.
const REVISION_DIGITS: usize = 10;
/// Digits of the hash of a specification.
const SPECIFICATION_DIGITS: usize = 32;

/// Annotations of the Deployments that are there, of the coordinator or of one group.
pub(in crate::prover_cluster) type Annotations = Labels;

/// Image of a group's agents: what the specification names, else the one with which the same specification already runs, so that another operator changes
/// no worker; else that of this operator.
#[must_use]
pub fn pin_worker<'a>(
    cluster: &ValidatedCluster,
    group: &Group,
    surroundings: &Surroundings,
    present: impl IntoIterator<Item = &'a Annotations>,
    default: &Image,
) -> Image {
    if let Some(image) = &cluster.worker_image {
        return image.clone();
    }
    let template = pod::template(cluster, group, surroundings, &Image(String::new()));
    pinned(&specification(&template), present).unwrap_or_else(|| default.clone())
}

/// Image of the coordinator: what the specification names, else as for workers.
#[must_use]
pub fn pin_coordinator<'a>(
    cluster: &ValidatedCluster,
    surroundings: &Surroundings,
    present: impl IntoIterator<Item = &'a Annotations>,
    default: &Image,
) -> Image {
    if let Some(image) = &cluster.coordinator.image {
        return image.clone();
    }
    let specification = coordinator::specification_of(cluster, surroundings);
    pinned(&specification, present).unwrap_or_else(|| default.clone())
}

fn pinned<'a>(specification: &str, present: impl IntoIterator<Item = &'a Annotations>) -> Option<Image> {
    present
        .into_iter()
        .filter(|annotations| {
            annotations
                .get(SPECIFICATION_ANNOTATION)
                .is_some_and(|hash| hash == specification)
        })
        .find_map(|annotations| annotations.get(IMAGE_ANNOTATION))
        .map(|image| Image(image.clone()))
}

/// Hash of a template without image.
pub(super) fn specification(template: &PodTemplateSpec) -> String {
    hash(
        &serde_json::to_value(template).unwrap_or_default(),
        SPECIFICATION_DIGITS,
    )
}

/// What a later operator reads to keep the image.
pub(super) fn pin_annotations(specification: &str, image: &Image) -> Annotations {
    labels([
        (SPECIFICATION_ANNOTATION, specification),
        (IMAGE_ANNOTATION, image.0.as_str()),
    ])
}

/// The Deployment of the current revision.
pub(super) fn deployment(
    cluster: &ValidatedCluster,
    group: &Group,
    surroundings: &Surroundings,
    image: &Image,
) -> Manifest {
    let identity = &cluster.identity;
    let mut template = pod::template(cluster, group, surroundings, image);
    let revision = hash(
        &serde_json::to_value(&template).unwrap_or_default(),
        REVISION_DIGITS,
    );
    let specification = specification(&pod::template(
        cluster,
        group,
        surroundings,
        &Image(String::new()),
    ));

    let mut selector = group_selector(identity, &group.name);
    selector.insert(names::REVISION_LABEL.to_owned(), revision.clone());
    if let Some(metadata) = &mut template.metadata {
        metadata.labels.get_or_insert_default().extend(selector.clone());
    }
    let name = names::worker_deployment(&identity.name, &group.name, &revision);
    let mut metadata = owned(identity, name, selector.clone());
    metadata.annotations = Some(pin_annotations(&specification, image));
    let deployment = Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            // The number of replicas belongs to the scaler: it must not appear here.
            replicas: None,
            revision_history_limit: Some(0),
            selector: matching(selector),
            template,
            ..DeploymentSpec::default()
        }),
        status: None,
    };
    Manifest {
        creation: Creation::WithoutReplicas,
        ..Manifest::new(Kind::Deployment, &deployment)
    }
}
