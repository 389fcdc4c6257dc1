//! What can be wrong with a ProverCluster although it passed the rules of the CRD: one variant each, with the field
//! and what to write instead.

use prover_crds::names::LONGEST_CLUSTER_NAME;

/// A ProverCluster that nothing can be built from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValidationError {
    /// Names of Services are made from the name.
    #[error(
        "metadata.name: {name:?} can't be part of the name of a Service: use at most {LONGEST_CLUSTER_NAME} lower-case \
         letters, digits and hyphens, beginning with a letter, and create the ProverCluster again"
    )]
    NameUnfit {
        /// The name.
        name: String,
    },
    /// The object did not come from the API server.
    #[error("metadata.{field} is missing: the object was not read from the API server")]
    Incomplete {
        /// The field.
        field: &'static str,
    },
    /// The annotation has an unknown value.
    #[error(
        "metadata.annotations[proving.rs/apply]: {value:?} is unknown: write paused or dry-run, or remove it"
    )]
    ApplyStrategyUnknown {
        /// Its value.
        value: String,
    },
    /// The address of the store is no URL of a service.
    #[error(
        "spec.artifactStore.s3.endpoint: {endpoint:?} must be http://host:port or https://host:port: {problem}"
    )]
    EndpointUnfit {
        /// As written.
        endpoint: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An image that no node could fetch.
    #[error("{field}: {image:?} is no name of an image: write registry/name:tag without spaces")]
    ImageUnfit {
        /// Where it is written.
        field: String,
        /// As written.
        image: String,
    },
    /// The backend of a group does not exist.
    #[error(
        "spec.workerGroups[{group}].backend: there is no backend {backend:?}: correct it, or add it to spec.backends"
    )]
    BackendUnknown {
        /// Name of the group.
        group: String,
        /// Name of the backend.
        backend: String,
    },
    /// Command lines are missing, or are there for a prover that has its own.
    #[error("spec.backends[{backend}].command: system command needs it, and no other system has it")]
    CommandUnfit {
        /// Name of the backend.
        backend: String,
    },
    /// A group has two names for its device, or none.
    #[error("spec.workerGroups[{group}].device: name exactly one kind: cpu: {{}} or gpu: {{}}")]
    DeviceUnfit {
        /// Name of the group.
        group: String,
    },
    /// Something that must be a quantity greater than zero is not.
    #[error("{field}: {value:?} must be a quantity greater than zero, such as 8 or 24Gi")]
    QuantityUnfit {
        /// Where it is written.
        field: String,
        /// As written.
        value: String,
    },
    /// Nobody can guess how much memory a prover may use.
    #[error(
        "spec.workerGroups[{group}].resources.memory is missing: say how much memory the provers of one worker may use, \
         such as 24Gi; tasks are placed by it"
    )]
    MemoryMissing {
        /// Name of the group.
        group: String,
    },
    /// The memory does not hold what shall lie in it.
    #[error(
        "spec.workerGroups[{group}]: resources.memory is {memory} bytes, of which exchangeSize and shared memory take \
         {taken}: raise memory or lower exchangeSize, so that at least {least} bytes are left for provers"
    )]
    MemoryTooSmall {
        /// Name of the group.
        group: String,
        /// Bytes of memory.
        memory: u64,
        /// Bytes that are not for provers.
        taken: u64,
        /// Bytes that provers need at least.
        least: u64,
    },
    /// Two numbers of workers.
    #[error("spec.workerGroups[{group}]: replicas and scaling exclude each other: leave one of them out")]
    ReplicasAndScaling {
        /// Name of the group.
        group: String,
    },
    /// No number lies between the bounds.
    #[error(
        "spec.workerGroups[{group}].scaling: minReplicas {min} is greater than maxReplicas {max}: lower it"
    )]
    ScalingBoundsUnfit {
        /// Name of the group.
        group: String,
        /// Fewest.
        min: i32,
        /// Most.
        max: i32,
    },
    /// A mode that this version does not have.
    #[error(
        "spec.workerGroups[{group}].scaling.mode: this version of the operator has no mode {mode}: use Native"
    )]
    ScalingModeUnavailable {
        /// Name of the group.
        group: String,
        /// The mode.
        mode: &'static str,
    },
    /// A claim takes the place of a resource.
    #[error(
        "spec.workerGroups[{group}].device.gpu: resourceClaimTemplateName takes the place of resourceName and \
         migProfile: leave them out"
    )]
    ClaimAndResource {
        /// Name of the group.
        group: String,
    },
    /// Labels and annotations by which the operator finds its objects.
    #[error("{field}: {key:?} is the operator's own: choose another key")]
    KeyReserved {
        /// Where it is written.
        field: String,
        /// The label or annotation.
        key: String,
    },
    /// A variable that the operator sets, or one with two values or none.
    #[error("{field}: variable {name:?} must not begin with PROVER_ and needs either value or secretRef")]
    VariableUnfit {
        /// Where it is written.
        field: String,
        /// Its name.
        name: String,
    },
    /// A selector that nobody reads, or one that is missing.
    #[error("spec.allowedNamespaces: selector and from: Selector belong together: write both, or neither")]
    SelectorUnfit,
    /// Costs in several currencies can't be added up.
    #[error(
        "spec.workerGroups[{group}].cost.currency: {currency} differs from {other} of another group: use one currency"
    )]
    CurrenciesDiffer {
        /// Name of the group.
        group: String,
        /// Its currency.
        currency: String,
        /// That of a group before it.
        other: String,
    },
    /// All workers of a cluster share one ServiceAccount.
    #[error(
        "spec.workerGroups[{group}].pod.serviceAccountAnnotations: {key:?} has another value in another group, but all \
         workers of a ProverCluster share one ServiceAccount: use one value, or several ProverClusters"
    )]
    AccountAnnotationsDiffer {
        /// Name of the group.
        group: String,
        /// The annotation.
        key: String,
    },
    /// Names of objects are made from names of groups.
    #[error("spec.workerGroups[{group}].name is used twice: choose another name")]
    GroupTwice {
        /// The name.
        group: String,
    },
}

impl ValidationError {
    /// Short name for metrics and events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            ValidationError::NameUnfit { .. } => "name_unfit",
            ValidationError::Incomplete { .. } => "incomplete",
            ValidationError::ApplyStrategyUnknown { .. } => "apply_strategy_unknown",
            ValidationError::EndpointUnfit { .. } => "endpoint_unfit",
            ValidationError::ImageUnfit { .. } => "image_unfit",
            ValidationError::BackendUnknown { .. } => "backend_unknown",
            ValidationError::CommandUnfit { .. } => "command_unfit",
            ValidationError::DeviceUnfit { .. } => "device_unfit",
            ValidationError::QuantityUnfit { .. } => "quantity_unfit",
            ValidationError::MemoryMissing { .. } => "memory_missing",
            ValidationError::MemoryTooSmall { .. } => "memory_too_small",
            ValidationError::ReplicasAndScaling { .. } => "replicas_and_scaling",
            ValidationError::ScalingBoundsUnfit { .. } => "scaling_bounds_unfit",
            ValidationError::ScalingModeUnavailable { .. } => "scaling_mode_unavailable",
            ValidationError::ClaimAndResource { .. } => "claim_and_resource",
            ValidationError::KeyReserved { .. } => "key_reserved",
            ValidationError::VariableUnfit { .. } => "variable_unfit",
            ValidationError::SelectorUnfit => "selector_unfit",
            ValidationError::CurrenciesDiffer { .. } => "currencies_differ",
            ValidationError::AccountAnnotationsDiffer { .. } => "account_annotations_differ",
            ValidationError::GroupTwice { .. } => "group_twice",
        }
    }
}
