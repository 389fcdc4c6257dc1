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

    /// What it said of itself, as a later coordinator can read it.
    pub(crate) fn encoded(&self) -> Vec<u8> {
        self.description.encode_to_vec()
    }

    /// From what an earlier coordinator kept of it.
    pub(crate) fn remembered(encoded: &[u8]) -> Option<Backend> {
        let told = protocol::BackendDescription::decode(encoded).ok()?;
        let description = wire::BackendDescription {
            name: told.name,
            version: told.version,
            encoded: encoded.to_vec(),
        };
        Backend::from_wire(&description).ok()
    }

    /// Why it does not offer a kind of proof that it would make.
    pub(crate) fn withheld(&self, system: &str, kind: &str) -> Option<&protocol::WithheldProof> {
        self.description
            .withheld
            .iter()
            .find(|withheld| withheld.system == system && withheld.kind == kind)
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
    /// Nobody makes it, and this one would but for what it says.
    Withheld(Arc<Backend>),
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
        let withholding = |entry: &&Entry| entry.backend.withheld(system, kind).is_some();
        if let Some(entry) = self.entries.values().find(withholding) {
            return Choice::Withheld(Arc::clone(&entry.backend));
        }
        match self.entries.values().find(|entry| entry.backend.makes(system)) {
            Some(entry) => Choice::KindNotOffered(Arc::clone(&entry.backend)),
            None => Choice::NobodyYet,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_told(version: &str, kinds: &[&str]) -> protocol::BackendDescription {
        let resources = protocol::Resources {
            device_class: protocol::DeviceClass::Gpu.into(),
            host_memory_bytes: 7,
            vram_bytes: 9,
        };
        let task_type = |name: &str, lane: protocol::Lane, cacheable| protocol::TaskType {
            name: name.to_owned(),
            stage: "Stage".to_owned(),
            stage_order: 1,
            cacheable,
            verifies: name == "verify",
            lane: lane.into(),
        };
        let offer = |kind: &&str| protocol::ProofOffer {
            system: "risc0".to_owned(),
            kind: (*kind).to_owned(),
            root_task_type: "plan".to_owned(),
            parent_chain: vec![resources],
            largest_leaf: Some(resources),
        };
        protocol::BackendDescription {
            name: "made-up".to_owned(),
            version: version.to_owned(),
            attempts_at_once: 1,
            proofs: kinds.iter().map(offer).collect(),
            task_types: vec![
                task_type("plan", protocol::Lane::Control, false),
                task_type("prove", protocol::Lane::Device, true),
                task_type("verify", protocol::Lane::Device, false),
            ],
            hang_after_ms: 0,
            emulated: false,
            withheld: Vec::new(),
        }
    }

    fn mk_backend(version: &str, kinds: &[&str]) -> Arc<Backend> {
        let told = mk_told(version, kinds);
        let description = wire::BackendDescription {
            name: told.name.clone(),
            version: told.version.clone(),
            encoded: told.encode_to_vec(),
        };
        Arc::new(Backend::from_wire(&description).unwrap())
    }

    fn mk_submission() -> protocol::TaskSubmission {
        protocol::TaskSubmission {
            request_id: "one".to_owned(),
            task_type: "prove".to_owned(),
            resources: Some(protocol::Resources {
                device_class: protocol::DeviceClass::Gpu.into(),
                host_memory_bytes: 7,
                vram_bytes: 9,
            }),
            depends_on: vec!["zero".to_owned()],
            inputs: vec!["in".to_owned()],
            outputs: vec!["out".to_owned()],
            parameters: vec![1, 2],
            cache_key: "key".to_owned(),
            estimated_device_seconds: 1.5,
            concludes_job: false,
            marker: false,
        }
    }

    #[test]
    fn a_submitted_task_gets_the_lane_of_its_type_and_the_version_of_its_backend() {
        let backend = mk_backend("1", &["Succinct"]);
        let task = backend.task(mk_submission());
        assert_eq!(task.requirements.lane, Lane::Device);
        assert_eq!(task.requirements.device_class, DeviceClass::Gpu);
        assert_eq!(
            (task.requirements.host_memory_bytes, task.requirements.vram_bytes),
            (7, 9)
        );
        assert_eq!(task.requirements.backend, backend.version);
        assert_eq!(task.estimated_device_time, Some(Milliseconds(1_500)));
        assert_eq!(task.cache_key.as_deref(), Some("key"));
        let planner = protocol::TaskSubmission {
            task_type: "plan".to_owned(),
            ..mk_submission()
        };
        assert_eq!(backend.task(planner).requirements.lane, Lane::Control);
    }

    #[test]
    fn only_cacheable_types_keep_their_cache_key_and_markers_never_do() {
        let backend = mk_backend("1", &["Succinct"]);
        let verify = protocol::TaskSubmission {
            task_type: "verify".to_owned(),
            ..mk_submission()
        };
        assert_eq!(backend.task(verify).cache_key, None);
        let marker = protocol::TaskSubmission {
            marker: true,
            ..mk_submission()
        };
        assert_eq!(backend.task(marker).cache_key, None);
    }

    #[test]
    fn estimates_without_sense_are_no_estimates() {
        let backend = mk_backend("1", &["Succinct"]);
        for estimated_device_seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let task = backend.task(protocol::TaskSubmission {
                estimated_device_seconds,
                ..mk_submission()
            });
            assert_eq!(task.estimated_device_time, None, "{estimated_device_seconds}");
        }
    }

    #[test]
    fn a_job_goes_to_the_backend_with_the_most_workers_and_of_equals_to_the_newest() {
        let mut catalogue = Catalogue::default();
        assert_eq!(catalogue.choose("risc0", "Succinct"), Choice::NobodyYet);
        let (old, new) = (mk_backend("1", &["Succinct"]), mk_backend("2", &["Succinct"]));
        catalogue.add(WorkerId(1), &old);
        catalogue.add(WorkerId(2), &new);
        assert_eq!(
            catalogue.choose("risc0", "Succinct"),
            Choice::Backend(new.clone())
        );
        catalogue.add(WorkerId(3), &old);
        assert_eq!(
            catalogue.choose("risc0", "Succinct"),
            Choice::Backend(old.clone())
        );
        assert_eq!(
            catalogue.workers(&old.version).collect::<Vec<_>>(),
            [WorkerId(1), WorkerId(3)]
        );
        catalogue.remove(WorkerId(1));
        catalogue.remove(WorkerId(3));
        assert_eq!(catalogue.choose("risc0", "Succinct"), Choice::Backend(new));
    }

    #[test]
    fn a_system_that_is_made_in_other_kinds_only_is_told_from_one_that_nobody_makes() {
        let mut catalogue = Catalogue::default();
        let backend = mk_backend("1", &["Composite", "Succinct"]);
        catalogue.add(WorkerId(1), &backend);
        assert_eq!(
            catalogue.choose("risc0", "Groth16"),
            Choice::KindNotOffered(backend.clone())
        );
        assert_eq!(catalogue.choose("sp1", "Groth16"), Choice::NobodyYet);
        assert_eq!(backend.kinds("risc0"), "Composite, Succinct");
    }
}
