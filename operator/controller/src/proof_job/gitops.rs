//! Whether Git keeps an object: then deleting it would only have it created, and proved, again.

use std::collections::BTreeMap;

use kube::core::ObjectMeta;

/// Argo CD's tracking by annotation, its default since 3.0.
const ARGO_TRACKING_ID: &str = "argocd.argoproj.io/tracking-id";
/// Argo CD's tracking by label. Helm and people set it too, so it counts only where nothing says otherwise.
const INSTANCE: &str = "app.kubernetes.io/instance";
/// Says that something else than Argo CD made the object.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Argo CD's record of which installation tracks the object.
const ARGO_INSTALLATION_ID: &str = "argocd.argoproj.io/installation-id";
/// Flux, objects of a Kustomization.
const FLUX_KUSTOMIZATION: &str = "kustomize.toolkit.fluxcd.io/name";
/// Flux, objects of a HelmRelease.
const FLUX_HELM_RELEASE: &str = "helm.toolkit.fluxcd.io/name";

/// Annotations that are read here.
pub(super) const ANNOTATIONS: &[&str] = &[ARGO_TRACKING_ID, ARGO_INSTALLATION_ID];
/// Labels that are read here.
pub(super) const LABELS: &[&str] = &[INSTANCE, MANAGED_BY, FLUX_KUSTOMIZATION, FLUX_HELM_RELEASE];

/// What keeps an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracker {
    /// Argo CD.
    ArgoCd,
    /// Flux.
    Flux,
}

impl Tracker {
    /// For people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Tracker::ArgoCd => "Argo CD",
            Tracker::Flux => "Flux",
        }
    }
}

/// What keeps this object, if anything does.
#[must_use]
pub fn tracker(metadata: &ObjectMeta) -> Option<Tracker> {
    let has = |entries: &Option<BTreeMap<String, String>>, name: &str| {
        entries
            .as_ref()
            .and_then(|entries| entries.get(name))
            .is_some_and(|value| !value.is_empty())
    };
    let label = |name| has(&metadata.labels, name);
    let annotation = |name| has(&metadata.annotations, name);
    if annotation(ARGO_TRACKING_ID) || annotation(ARGO_INSTALLATION_ID) {
        Some(Tracker::ArgoCd)
    } else if label(FLUX_KUSTOMIZATION) || label(FLUX_HELM_RELEASE) {
        Some(Tracker::Flux)
    } else if label(INSTANCE) && !label(MANAGED_BY) {
        Some(Tracker::ArgoCd)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(labels: &[&str]) -> ObjectMeta {
        let labels = labels
            .iter()
            .map(|name| ((*name).to_owned(), "proofs".to_owned()))
            .collect();
        ObjectMeta {
            labels: Some(labels),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn objects_of_argo_cd_and_flux_are_recognised() {
        let mut argo = ObjectMeta::default();
        let id = "proofs:proving.rs/ProofJob:default/fibonacci".to_owned();
        argo.annotations = Some([(ARGO_TRACKING_ID.to_owned(), id)].into());
        assert_eq!(tracker(&argo), Some(Tracker::ArgoCd));
        assert_eq!(tracker(&labelled(&[FLUX_KUSTOMIZATION])), Some(Tracker::Flux));
        assert_eq!(
            tracker(&labelled(&[FLUX_HELM_RELEASE, INSTANCE, MANAGED_BY])),
            Some(Tracker::Flux)
        );
    }

    #[test]
    fn the_instance_label_counts_unless_somebody_else_says_that_it_made_the_object() {
        assert_eq!(tracker(&labelled(&[INSTANCE])), Some(Tracker::ArgoCd));
        assert_eq!(tracker(&labelled(&[INSTANCE, MANAGED_BY])), None);
        assert_eq!(tracker(&ObjectMeta::default()), None);
    }
}
