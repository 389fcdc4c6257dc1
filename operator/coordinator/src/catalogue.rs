//! What the connected backends say of themselves: which proofs they make, and what their task types are.
//!
//! Owns the checked form of a backend's description and the choice of the backend for a proof. Does not own which
//! worker runs what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::Message;
use prover_backend::protocol;
use prover_core::{BackendVersion, DeviceClass, Lane, Milliseconds, Requirements, TaskSpec, WorkerId};
use prover_wire::protocol as wire;

use crate::convert::ConversionError;

/// A task type of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TaskType {
    pub(crate) stage: Arc<str>,
    pub(crate) stage_order: u32,
    pub(crate) cacheable: bool,
    pub(crate) verifies: bool,
    pub(crate) lane: Lane,
}

/// A kind of proof that a backend makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) system: String,
    pub(crate) kind: String,
    pub(crate) root_task_type: Arc<str>,
    /// Never empty: the root is its own parent.
    pub(crate) parent_chain: Vec<Requirements>,
    pub(crate) largest_leaf: Requirements,
}

/// One backend of one version.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Backend {
    pub(crate) version: BackendVersion,
    pub(crate) emulated: bool,
    pub(crate) task_types: BTreeMap<Arc<str>, TaskType>,
    pub(crate) offers: Vec<Offer>,
    /// As the backend gave it, for the checks of its protocol.
    pub(crate) description: protocol::BackendDescription,
}

fn malformed(field: &'static str, problem: impl Into<String>) -> ConversionError {
    ConversionError::Malformed {
        field,
        problem: problem.into(),
    }
}

impl Backend {
    /// Reads and checks the description that a worker passes through.
    pub(crate) fn from_wire(description: &wire::BackendDescription) -> Result<Backend, ConversionError> {
        let told = protocol::BackendDescription::decode(description.encoded.as_slice())
            .map_err(|error| malformed("backend.encoded", error.to_string()))?;
        prover_backend::validate::description(&told)?;
        if told.name != description.name || told.version != description.version {
            return Err(malformed(
                "backend",
                format!(
                    "the worker calls it {} {}, its own description {} {}",
                    description.name, description.version, told.name, told.version
                ),
            ));
        }
        let version = BackendVersion {
            name: told.name.as_str().into(),
            version: told.version.as_str().into(),
        };
        let task_types = told.task_types.iter().map(task_type).collect();
        let offers = told.proofs.iter().map(|told| offer(told, &version)).collect();
        Ok(Backend {
            version,
            emulated: told.emulated,
            task_types,
            offers,
            description: told,
        })
    }

    /// What it offers for a proof.
    pub(crate) fn offer(&self, system: &str, kind: &str) -> Option<&Offer> {
        self.offers
            .iter()
            .find(|offer| offer.system == system && offer.kind == kind)
    }

    /// Whether it makes any proof of the system.
    pub(crate) fn makes(&self, system: &str) -> bool {
        self.offers.iter().any(|offer| offer.system == system)
    }

    /// The kinds of a system that it makes, for messages.
    pub(crate) fn kinds(&self, system: &str) -> String {
        let kinds: Vec<_> = self
            .offers
            .iter()
            .filter(|offer| offer.system == system)
            .map(|offer| offer.kind.as_str())
            .collect();
        kinds.join(", ")
    }

    /// A submitted task that has passed the checks of the backend's protocol, in the core's words.
    pub(crate) fn task(&self, task: protocol::TaskSubmission) -> TaskSpec {
        let known = self.task_types.get(task.task_type.as_str());
        // Only markers may have a type that is not declared; they run nowhere.
        let (lane, cacheable) = known.map_or((Lane::Control, false), |known| (known.lane, known.cacheable));
        let resources = task.resources.unwrap_or_default();
        let cache_key =
            (cacheable && !task.marker && !task.cache_key.is_empty()).then(|| task.cache_key.into());
        let estimate = task.estimated_device_seconds;
        let estimated_device_time =
            (estimate.is_finite() && estimate > 0.0).then_some(Milliseconds((estimate * 1_000.0) as u64));
        TaskSpec {
            requirements: requirements(lane, &resources, &self.version),
            request_id: task.request_id.into(),
            task_type: task.task_type.into(),
            depends_on: task.depends_on.into_iter().map(Into::into).collect(),
            inputs: task.inputs.into_iter().map(Into::into).collect(),
            outputs: task.outputs.into_iter().map(Into::into).collect(),
            parameters: task.parameters.into(),
            cache_key,
            estimated_device_time,
            completes: Vec::new(),
            concludes_job: task.concludes_job,
            marker: task.marker,
        }
    }
}

fn task_type(told: &protocol::TaskType) -> (Arc<str>, TaskType) {
    let lane = match told.lane() {
        protocol::Lane::Device => Lane::Device,
        protocol::Lane::Control | protocol::Lane::Unspecified => Lane::Control,
    };
    let task_type = TaskType {
        stage: told.stage.as_str().into(),
        stage_order: told.stage_order,
        cacheable: told.cacheable,
        verifies: told.verifies,
        lane,
    };
    (told.name.as_str().into(), task_type)
}

fn offer(told: &protocol::ProofOffer, version: &BackendVersion) -> Offer {
    let leaf = told.largest_leaf.unwrap_or_default();
    Offer {
        root_task_type: told.root_task_type.as_str().into(),
        parent_chain: told
            .parent_chain
            .iter()
            .map(|parent| requirements(Lane::Control, parent, version))
            .collect(),
        largest_leaf: requirements(Lane::Device, &leaf, version),
        system: told.system.clone(),
        kind: told.kind.clone(),
    }
}

fn requirements(lane: Lane, resources: &protocol::Resources, backend: &BackendVersion) -> Requirements {
    let device_class = match resources.device_class() {
        protocol::DeviceClass::Gpu => DeviceClass::Gpu,
        protocol::DeviceClass::Cpu | protocol::DeviceClass::Unspecified => DeviceClass::Cpu,
    };
    Requirements {
        lane,
        device_class,
        host_memory_bytes: resources.host_memory_bytes,
        vram_bytes: resources.vram_bytes,
        backend: backend.clone(),
    }
}

/// Whether and by whom a proof is made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Choice {
    /// By this backend.
    Backend(Arc<Backend>),
    /// No connected backend makes proofs of the system: wait.
    NobodyYet,
    /// This one makes proofs of the system, but not of the kind.
    KindNotOffered(Arc<Backend>),
}

#[derive(Debug)]
struct Entry {
    backend: Arc<Backend>,
    workers: BTreeSet<WorkerId>,
}

/// The backends of the workers that are not gone.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    entries: BTreeMap<BackendVersion, Entry>,
}

impl Catalogue {
    /// A worker runs this backend. The first description of a version holds as long as any of its workers.
    pub(crate) fn add(&mut self, worker: WorkerId, backend: &Arc<Backend>) -> Arc<Backend> {
        let entry = self
            .entries
            .entry(backend.version.clone())
            .or_insert_with(|| Entry {
                backend: Arc::clone(backend),
                workers: BTreeSet::new(),
            });
        if entry.backend != *backend {
            tracing::warn!(
                backend = %backend.version.name, version = %backend.version.version, %worker,
                "two workers describe the same backend version differently; the first description is used"
            );
        }
        entry.workers.insert(worker);
        Arc::clone(&entry.backend)
    }

    /// A worker is gone.
    pub(crate) fn remove(&mut self, worker: WorkerId) {
        self.entries.retain(|_, entry| {
            entry.workers.remove(&worker);
            !entry.workers.is_empty()
        });
    }

    /// The workers that run a backend.
    pub(crate) fn workers(&self, version: &BackendVersion) -> impl Iterator<Item = WorkerId> + '_ {
        self.entries
            .get(version)
            .into_iter()
            .flat_map(|entry| entry.workers.iter().copied())
    }

    /// Who makes a proof: of several backends the one with the most workers, of equals the highest version.
    pub(crate) fn choose(&self, system: &str, kind: &str) -> Choice {
        let making = |entry: &&Entry| entry.backend.offer(system, kind).is_some();
        if let Some(entry) = self
            .entries
            .values()
            .filter(making)
            .max_by_key(|entry| entry.workers.len())
        {
            return Choice::Backend(Arc::clone(&entry.backend));
        }
        match self.entries.values().find(|entry| entry.backend.makes(system)) {
            Some(entry) => Choice::KindNotOffered(Arc::clone(&entry.backend)),
            None => Choice::NobodyYet,
        }
    }
}
