//! Second step: a ProverCluster becomes one whose every value can be built from, or says what is wrong with it.
//!
//! Owns defaults and what the CRD can't check. Has no client.

mod error;
mod group;
mod types;

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use prover_crds::names::{APPLY_ANNOTATION, LONGEST_CLUSTER_NAME};
use prover_crds::{NamespacesFrom, PodOverrides, ProofSystem, ProverCluster, Quantity, S3Store, names};
use url::Url;

pub use error::ValidationError;
pub use types::*;

/// Coordinators of a cluster that does not say how many: one leads, the other is warm.
const COORDINATORS: i32 = 2;
/// What a coordinator asks for that does not say otherwise.
const COORDINATOR_CPU: MilliCores = MilliCores(250);
/// Memory of a coordinator: measured at less than a quarter of it with a job of 4,096 segments.
const COORDINATOR_MEMORY: Bytes = Bytes::mebi(512);

/// Checks everything that building relies on.
///
/// # Errors
/// The first thing that is wrong, in the order of the specification.
pub fn validate(cluster: &ProverCluster) -> Result<ValidatedCluster, ValidationError> {
    let spec = &cluster.spec;
    let mut groups = Vec::with_capacity(spec.worker_groups.len());
    let mut seen = BTreeSet::new();
    for group in &spec.worker_groups {
        if !seen.insert(&group.name) {
            return Err(ValidationError::GroupTwice {
                group: group.name.clone(),
            });
        }
        groups.push(group::validate(group, spec)?);
    }
    let shards = group::shards(&groups);
    for group in &mut groups {
        if group.prover.system == ProofSystem::Sp1 {
            group.prover.shards = shards;
        }
    }
    currencies(cluster)?;
    account_annotations(&groups)?;
    Ok(ValidatedCluster {
        identity: identity(cluster)?,
        strategy: apply_strategy(cluster)?,
        store: store(&spec.artifact_store.s3)?,
        coordinator: coordinator(cluster)?,
        worker_image: spec
            .worker_image
            .as_ref()
            .map(|text| image(text, "spec.workerImage"))
            .transpose()?,
        groups,
        namespaces: namespaces(cluster)?,
    })
}

fn identity(cluster: &ProverCluster) -> Result<Identity, ValidationError> {
    let name = cluster.name_any();
    let fits = name.len() <= LONGEST_CLUSTER_NAME
        && name.starts_with(|letter: char| letter.is_ascii_lowercase())
        && !name.ends_with('-')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !fits {
        return Err(ValidationError::NameUnfit { name });
    }
    let missing = |field| ValidationError::Incomplete { field };
    Ok(Identity {
        namespace: cluster.namespace().ok_or(missing("namespace"))?,
        uid: cluster.uid().ok_or(missing("uid"))?,
        name,
    })
}

/// What the annotation of a ProverCluster says may be done.
pub(super) fn apply_strategy(cluster: &ProverCluster) -> Result<ApplyStrategy, ValidationError> {
    match cluster.annotations().get(APPLY_ANNOTATION).map(String::as_str) {
        None => Ok(ApplyStrategy::Apply),
        Some("paused") => Ok(ApplyStrategy::Paused),
        Some("dry-run") => Ok(ApplyStrategy::DryRun),
        Some(value) => Err(ValidationError::ApplyStrategyUnknown {
            value: value.to_owned(),
        }),
    }
}

fn store(s3: &S3Store) -> Result<Store, ValidationError> {
    let prefix = s3
        .prefix
        .as_deref()
        .map(|prefix| format!("/{prefix}"))
        .unwrap_or_default();
    let mut parameters = url::form_urlencoded::Serializer::new(String::new());
    if let Some(endpoint) = &s3.endpoint {
        let unfit = |problem: &str| ValidationError::EndpointUnfit {
            endpoint: endpoint.clone(),
            problem: problem.to_owned(),
        };
        let parsed = Url::parse(endpoint).map_err(|error| unfit(&error.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(unfit("it is neither http nor https"));
        }
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(unfit("credentials belong into the Secret of credentialsRef"));
        }
        if parsed.query().is_some() || parsed.fragment().is_some() || parsed.path() != "/" {
            return Err(unfit("it has a path or parameters"));
        }
        parameters.append_pair("endpoint", endpoint.trim_end_matches('/'));
    }
    if let Some(region) = &s3.region {
        parameters.append_pair("region", region);
    }
    let parameters = parameters.finish();
    let separator = if parameters.is_empty() { "" } else { "?" };
    Ok(Store {
        url: format!("s3://{}{prefix}{separator}{parameters}", s3.bucket),
        credentials: s3.credentials_ref.as_ref().map(|secret| secret.name.clone()),
        authority: s3
            .ca_ref
            .as_ref()
            .map(|reference| (reference.name.clone(), reference.key.clone())),
    })
}

fn coordinator(cluster: &ProverCluster) -> Result<Coordinator, ValidationError> {
    let coordinator = cluster.spec.coordinator.clone().unwrap_or_default();
    let resources = coordinator.resources.unwrap_or_default();
    let at = |name: &str| format!("spec.coordinator.resources.{name}");
    let pod = coordinator.pod.unwrap_or_default();
    overrides(&pod, "spec.coordinator.pod")?;
    let optional_image = |text: &String| image(text, "spec.coordinator.image");
    Ok(Coordinator {
        replicas: coordinator.replicas.unwrap_or(COORDINATORS).max(1),
        image: coordinator.image.as_ref().map(optional_image).transpose()?,
        cpu: cores(resources.cpu.as_ref(), &at("cpu"))?.unwrap_or(COORDINATOR_CPU),
        memory: bytes(resources.memory.as_ref(), &at("memory"))?.unwrap_or(COORDINATOR_MEMORY),
        ephemeral_storage: bytes(resources.ephemeral_storage.as_ref(), &at("ephemeralStorage"))?,
        pod,
    })
}

fn namespaces(cluster: &ProverCluster) -> Result<AllowedNamespaces, ValidationError> {
    let Some(allowed) = &cluster.spec.allowed_namespaces else {
        return Ok(AllowedNamespaces::Same);
    };
    match (allowed.from, &allowed.selector) {
        (NamespacesFrom::Same, None) => Ok(AllowedNamespaces::Same),
        (NamespacesFrom::All, None) => Ok(AllowedNamespaces::All),
        (NamespacesFrom::Selector, Some(selector)) => {
            Ok(AllowedNamespaces::Selector(selector.match_labels.clone()))
        }
        _ => Err(ValidationError::SelectorUnfit),
    }
}

fn currencies(cluster: &ProverCluster) -> Result<(), ValidationError> {
    let mut first: Option<&str> = None;
    for group in &cluster.spec.worker_groups {
        let Some(cost) = &group.cost else { continue };
        let other = *first.get_or_insert(&cost.currency);
        if other != cost.currency {
            return Err(ValidationError::CurrenciesDiffer {
                group: group.name.clone(),
                currency: cost.currency.clone(),
                other: other.to_owned(),
            });
        }
    }
    Ok(())
}

fn account_annotations(groups: &[Group]) -> Result<(), ValidationError> {
    let mut all: BTreeMap<&str, &str> = BTreeMap::new();
    for group in groups {
        for (key, value) in &group.pod.service_account_annotations {
            if *all.entry(key).or_insert(value) != value {
                return Err(ValidationError::AccountAnnotationsDiffer {
                    group: group.name.clone(),
                    key: key.clone(),
                });
            }
        }
    }
    Ok(())
}

/// Overrides must not take away by what the operator finds its pods.
fn overrides(pod: &PodOverrides, field: &str) -> Result<(), ValidationError> {
    let own = |key: &str| {
        key.split_once('/')
            .is_some_and(|(domain, _)| domain == "proving.rs" || domain.ends_with(".proving.rs"))
            || [names::NAME_LABEL, names::COMPONENT_LABEL, names::MANAGED_BY_LABEL].contains(&key)
    };
    let reserved = |part: &str, key: &str| ValidationError::KeyReserved {
        field: format!("{field}.{part}"),
        key: key.to_owned(),
    };
    if let Some(key) = pod.labels.keys().find(|key| own(key)) {
        return Err(reserved("labels", key));
    }
    if let Some(key) = pod.annotations.keys().find(|key| own(key)) {
        return Err(reserved("annotations", key));
    }
    if let Some(key) = pod.service_account_annotations.keys().find(|key| own(key)) {
        return Err(reserved("serviceAccountAnnotations", key));
    }
    let unfit = pod.env.iter().find(|variable| {
        variable.name.starts_with("PROVER_") || variable.value.is_some() == variable.secret_ref.is_some()
    });
    match unfit {
        Some(variable) => Err(ValidationError::VariableUnfit {
            field: format!("{field}.env"),
            name: variable.name.clone(),
        }),
        None => Ok(()),
    }
}

fn image(text: &str, field: &str) -> Result<Image, ValidationError> {
    if text.is_empty()
        || text
            .chars()
            .any(|letter| letter.is_whitespace() || letter.is_control())
    {
        return Err(ValidationError::ImageUnfit {
            field: field.to_owned(),
            image: text.to_owned(),
        });
    }
    Ok(Image(text.to_owned()))
}

fn bytes(quantity: Option<&Quantity>, field: &str) -> Result<Option<Bytes>, ValidationError> {
    let count = |quantity: &Quantity| match quantity.units() {
        Some(units) if units > 0 => Ok(Bytes(units)),
        _ => Err(unfit_quantity(quantity, field)),
    };
    quantity.map(count).transpose()
}

fn cores(quantity: Option<&Quantity>, field: &str) -> Result<Option<MilliCores>, ValidationError> {
    let count = |quantity: &Quantity| match quantity.thousandths() {
        Some(thousandths) if thousandths > 0 => Ok(MilliCores(thousandths)),
        _ => Err(unfit_quantity(quantity, field)),
    };
    quantity.map(count).transpose()
}

fn unfit_quantity(quantity: &Quantity, field: &str) -> ValidationError {
    ValidationError::QuantityUnfit {
        field: field.to_owned(),
        value: quantity.to_string(),
    }
}

#[cfg(test)]
mod tests;
