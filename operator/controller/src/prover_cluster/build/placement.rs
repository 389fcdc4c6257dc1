//! On which nodes pods run: presets of clouds, preferences for GPUs, and what users say.
//!
//! Required are only labels that a node has before it exists, as its provisioner knows them: a required label that
//! something on the node sets later (GPU feature discovery) would keep a group at zero for ever. Those are preferred.

use k8s_openapi::api::core::v1::{
    Affinity, LocalObjectReference, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
    PodSpec, PreferredSchedulingTerm, Toleration, TopologySpreadConstraint,
};
use prover_crds::{
    CapacityType, LabelOperator, NodeLabelRequirement, PodOverrides, Provider, TaintEffect,
    TolerationOperator, WhenUnsatisfiable,
};

use super::Surroundings;
use super::metadata::{Labels, matching};
use crate::prover_cluster::validate::{Bytes, Devices, GpuRequest, Group};

/// Weight of what users prefer, and of the product that they name.
const PREFERENCE: i32 = 100;
/// Weight of enough device memory.
const MEMORY_PREFERENCE: i32 = 50;
const HOST: &str = "kubernetes.io/hostname";
const NVIDIA_GPU: &str = "nvidia.com/gpu";
const SPOT_OF_GKE: &str = "cloud.google.com/gke-spot";
const ACCELERATOR_OF_GKE: &str = "cloud.google.com/gke-accelerator";
const PARTITION_OF_GKE: &str = "cloud.google.com/gke-gpu-partition-size";
const CAPACITY_OF_EKS: &str = "eks.amazonaws.com/capacityType";
const PRIORITY_OF_AKS: &str = "kubernetes.azure.com/scalesetpriority";
const ACCELERATOR_OF_AKS: &str = "kubernetes.azure.com/accelerator";
const CAPACITY_OF_KARPENTER: &str = "karpenter.sh/capacity-type";
const MEMORY_OF_KARPENTER: &str = "karpenter.k8s.aws/instance-gpu-memory";

/// What a node must have, what is better to have, and which taints do not matter.
#[derive(Debug, Default)]
struct Preset {
    required: Vec<NodeSelectorRequirement>,
    preferred: Vec<PreferredSchedulingTerm>,
    tolerations: Vec<Toleration>,
}

/// Secrets with which images are fetched: the operator's and the user's.
pub(super) fn pull_secrets(
    surroundings: &Surroundings,
    pod: &PodOverrides,
) -> Option<Vec<LocalObjectReference>> {
    let mut names: Vec<String> = surroundings.pull_secrets.clone();
    names.extend(pod.image_pull_secrets.iter().map(|secret| secret.name.clone()));
    let mut unique: Vec<LocalObjectReference> = Vec::new();
    for name in names {
        if unique.iter().all(|present| present.name != name) {
            unique.push(LocalObjectReference { name });
        }
    }
    (!unique.is_empty()).then_some(unique)
}

/// Puts a pod where it belongs. `selector` finds the pods that it is spread among.
pub(super) fn apply_overrides(
    spec: &mut PodSpec,
    pod: &PodOverrides,
    selector: &Labels,
    group: Option<&Group>,
) {
    let mut preset = group.map(preset).unwrap_or_default();
    preset
        .required
        .extend(pod.required_node_labels.iter().map(requirement));
    preset.preferred.extend(
        pod.preferred_node_labels
            .iter()
            .map(|label| preferred(PREFERENCE, requirement(label))),
    );
    preset.tolerations.extend(pod.tolerations.iter().map(toleration));
    spec.affinity = affinity(preset.required, preset.preferred);
    spec.tolerations = (!preset.tolerations.is_empty()).then_some(preset.tolerations);
    spec.node_selector = (!pod.node_selector.is_empty()).then(|| pod.node_selector.clone());
    spec.topology_spread_constraints = Some(spread(pod, selector));
    spec.priority_class_name = pod.priority_class_name.clone();
    spec.runtime_class_name = pod.runtime_class_name.clone();
    spec.scheduler_name = pod.scheduler_name.clone();
}

fn affinity(
    required: Vec<NodeSelectorRequirement>,
    preferred: Vec<PreferredSchedulingTerm>,
) -> Option<Affinity> {
    if required.is_empty() && preferred.is_empty() {
        return None;
    }
    let required = (!required.is_empty()).then(|| NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_expressions: Some(required),
            match_fields: None,
        }],
    });
    Some(Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: required,
            preferred_during_scheduling_ignored_during_execution: (!preferred.is_empty())
                .then_some(preferred),
        }),
        ..Affinity::default()
    })
}

fn spread(pod: &PodOverrides, selector: &Labels) -> Vec<TopologySpreadConstraint> {
    let constraint = |key: &str, skew: i32, when: WhenUnsatisfiable| TopologySpreadConstraint {
        label_selector: Some(matching(selector.clone())),
        max_skew: skew,
        topology_key: key.to_owned(),
        when_unsatisfiable: match when {
            WhenUnsatisfiable::ScheduleAnyway => "ScheduleAnyway",
            WhenUnsatisfiable::DoNotSchedule => "DoNotSchedule",
        }
        .to_owned(),
        ..TopologySpreadConstraint::default()
    };
    if pod.topology_spread.is_empty() {
        return vec![constraint(HOST, 1, WhenUnsatisfiable::ScheduleAnyway)];
    }
    let wanted = pod.topology_spread.iter();
    wanted
        .map(|spread| constraint(&spread.topology_key, spread.max_skew, spread.when_unsatisfiable))
        .collect()
}

fn preset(group: &Group) -> Preset {
    let mut preset = Preset::default();
    capacity(group, &mut preset);
    if let Devices::Gpu {
        request,
        product,
        mig_profile,
        min_memory,
        ..
    } = &group.devices
    {
        preset.tolerations.push(exists(NVIDIA_GPU));
        // Vendors taint their nodes with the name of their resource.
        if let GpuRequest::Resource(resource) = request
            && !resource.starts_with("nvidia.com/")
        {
            preset.tolerations.push(exists(resource));
        }
        accelerator(group, product.as_deref(), mig_profile.as_deref(), &mut preset);
        discovered(product.as_deref(), *min_memory, &mut preset);
    }
    preset
}

/// Spot machines for spot groups only, and no others for them.
fn capacity(group: &Group, preset: &mut Preset) {
    let spot = group.capacity == CapacityType::Spot;
    let (required, taint) = match group.provider {
        None => return,
        Some(Provider::Gke) if spot => (
            expression(SPOT_OF_GKE, "In", &["true"]),
            Some((SPOT_OF_GKE, "true")),
        ),
        Some(Provider::Gke) => (expression(SPOT_OF_GKE, "DoesNotExist", &[]), None),
        Some(Provider::Eks) => (expression(CAPACITY_OF_EKS, in_or_not(spot), &["SPOT"]), None),
        Some(Provider::Aks) => {
            let taint = spot.then_some((PRIORITY_OF_AKS, "spot"));
            (expression(PRIORITY_OF_AKS, in_or_not(spot), &["spot"]), taint)
        }
        Some(Provider::Karpenter) => (
            expression(CAPACITY_OF_KARPENTER, in_or_not(spot), &["spot"]),
            None,
        ),
    };
    preset.required.push(required);
    preset.tolerations.extend(taint.map(|(key, value)| Toleration {
        key: Some(key.to_owned()),
        operator: Some("Equal".to_owned()),
        value: Some(value.to_owned()),
        effect: Some("NoSchedule".to_owned()),
        toleration_seconds: None,
    }));
}

/// That a machine has GPUs, in the words of the cloud that makes it.
fn accelerator(group: &Group, product: Option<&str>, mig_profile: Option<&str>, preset: &mut Preset) {
    match group.provider {
        Some(Provider::Gke) => {
            preset.required.push(match product.and_then(name_at_gke) {
                Some(name) => expression(ACCELERATOR_OF_GKE, "In", &[name]),
                None => expression(ACCELERATOR_OF_GKE, "Exists", &[]),
            });
            preset
                .required
                .extend(mig_profile.map(|profile| expression(PARTITION_OF_GKE, "In", &[profile])));
        }
        Some(Provider::Aks) => {
            preset
                .required
                .push(expression(ACCELERATOR_OF_AKS, "In", &["nvidia"]));
            preset.tolerations.push(Toleration {
                key: Some("sku".to_owned()),
                operator: Some("Equal".to_owned()),
                value: Some("gpu".to_owned()),
                effect: Some("NoSchedule".to_owned()),
                toleration_seconds: None,
            });
        }
        Some(Provider::Karpenter) => {
            // Not every provider of Karpenter knows this label.
            if let Devices::Gpu {
                min_memory: Some(memory),
                ..
            } = &group.devices
            {
                let label = greater(MEMORY_OF_KARPENTER, *memory);
                preset.preferred.push(preferred(MEMORY_PREFERENCE, label));
            }
        }
        Some(Provider::Eks) | None => {}
    }
}

/// What GPU feature discovery finds out once a node is there.
fn discovered(product: Option<&str>, min_memory: Option<Bytes>, preset: &mut Preset) {
    if let Some(product) = product {
        let value = label_value(product);
        preset.preferred.push(preferred(
            PREFERENCE,
            expression("nvidia.com/gpu.product", "In", &[&value]),
        ));
    }
    if let Some(memory) = min_memory {
        preset.preferred.push(preferred(
            MEMORY_PREFERENCE,
            greater("nvidia.com/gpu.memory", memory),
        ));
    }
}

/// At least so many bytes, by a label that counts binary megabytes.
fn greater(label: &str, least: Bytes) -> NodeSelectorRequirement {
    let mebibytes = (least.0 >> 20).saturating_sub(1).to_string();
    expression(label, "Gt", &[&mebibytes])
}

/// GKE's names of what NVML calls a product. One that is not listed is asked for only as "any".
fn name_at_gke(product: &str) -> Option<&'static str> {
    const NAMES: [(&str, &str); 11] = [
        ("NVIDIA GB200", "nvidia-gb200"),
        ("NVIDIA B200", "nvidia-b200"),
        ("NVIDIA H200", "nvidia-h200-141gb"),
        ("NVIDIA H100 80GB", "nvidia-h100-80gb"),
        ("NVIDIA A100-SXM4-80GB", "nvidia-a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "nvidia-tesla-a100"),
        ("NVIDIA L40S", "nvidia-l40s"),
        ("NVIDIA L4", "nvidia-l4"),
        ("Tesla T4", "nvidia-tesla-t4"),
        ("Tesla V100", "nvidia-tesla-v100"),
        ("Tesla P100", "nvidia-tesla-p100"),
    ];
    let known = NAMES.iter().find(|(prefix, _)| product.starts_with(prefix));
    known.map(|(_, name)| *name)
}

/// As GPU feature discovery makes a label of a product.
fn label_value(product: &str) -> String {
    const LONGEST: usize = 63;
    let clean = |letter: char| {
        if letter.is_ascii_alphanumeric() || "-_.".contains(letter) {
            letter
        } else {
            '-'
        }
    };
    let value: String = product.chars().map(clean).take(LONGEST).collect();
    value
        .trim_matches(|letter: char| !letter.is_ascii_alphanumeric())
        .to_owned()
}

fn in_or_not(wanted: bool) -> &'static str {
    if wanted { "In" } else { "NotIn" }
}

fn expression(key: &str, operator: &str, values: &[&str]) -> NodeSelectorRequirement {
    NodeSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values: (!values.is_empty()).then(|| values.iter().map(|value| (*value).to_owned()).collect()),
    }
}

fn preferred(weight: i32, label: NodeSelectorRequirement) -> PreferredSchedulingTerm {
    PreferredSchedulingTerm {
        weight,
        preference: NodeSelectorTerm {
            match_expressions: Some(vec![label]),
            match_fields: None,
        },
    }
}

fn exists(key: &str) -> Toleration {
    Toleration {
        key: Some(key.to_owned()),
        operator: Some("Exists".to_owned()),
        effect: Some("NoSchedule".to_owned()),
        value: None,
        toleration_seconds: None,
    }
}

fn requirement(label: &NodeLabelRequirement) -> NodeSelectorRequirement {
    let operator = match label.operator {
        LabelOperator::In => "In",
        LabelOperator::NotIn => "NotIn",
        LabelOperator::Exists => "Exists",
        LabelOperator::DoesNotExist => "DoesNotExist",
        LabelOperator::Gt => "Gt",
        LabelOperator::Lt => "Lt",
    };
    let values: Vec<&str> = label.values.iter().map(String::as_str).collect();
    expression(&label.key, operator, &values)
}

fn toleration(toleration: &prover_crds::Toleration) -> Toleration {
    let operator = toleration.operator.map(|operator| match operator {
        TolerationOperator::Equal => "Equal".to_owned(),
        TolerationOperator::Exists => "Exists".to_owned(),
    });
    let effect = toleration.effect.map(|effect| match effect {
        TaintEffect::NoSchedule => "NoSchedule".to_owned(),
        TaintEffect::PreferNoSchedule => "PreferNoSchedule".to_owned(),
        TaintEffect::NoExecute => "NoExecute".to_owned(),
    });
    Toleration {
        key: toleration.key.clone(),
        operator,
        value: toleration.value.clone(),
        effect,
        toleration_seconds: None,
    }
}
