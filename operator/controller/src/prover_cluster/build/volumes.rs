//! The volumes of a worker and who mounts which: what agent and provers share, and what is for one of them.

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, EmptyDirVolumeSource, EphemeralVolumeSource, KeyToPath, PersistentVolumeClaimSpec,
    PersistentVolumeClaimTemplate, ProjectedVolumeSource, ServiceAccountTokenProjection, Volume, VolumeMount,
    VolumeProjection, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use prover_crds::names;

use super::container::{STORE_AUTHORITY_DIRECTORY, bytes, mount, read_only};
use super::coordinator::store_authority;
use super::metadata::{group_selector, labels};
use super::prover::{Slot, slots};
use crate::prover_cluster::validate::{Bytes, Group, ValidatedCluster};

/// Seconds that a worker's token is worth something; the kubelet renews it.
const TOKEN_SECONDS: i64 = 3_600;
/// For our own two programs.
const TOOLS_SIZE: Bytes = Bytes::mebi(256);
/// For sockets.
const SOCKETS_SIZE: Bytes = Bytes::mebi(1);
/// For temporary files of a container, where the group says nothing of the node's disk.
const TEMPORARY_SIZE: Bytes = Bytes::gibi(10);

const TOOLS: &str = "tools";
const SOCKETS: &str = "run";
const WORK: &str = "work";
const CACHE: &str = "cache";
const TOKEN: &str = "token";
const AUTHORITY: &str = "ca";
const STORE_AUTHORITY: &str = "store-authority";
const TEMPORARY: &str = "tmp";
const SHARED_MEMORY: &str = "shm";

/// Every volume of a worker.
pub(super) fn of_worker(cluster: &ValidatedCluster, group: &Group) -> Vec<Volume> {
    let temporary = group.ephemeral_storage.unwrap_or(TEMPORARY_SIZE);
    let mut volumes = vec![
        directory(TOOLS, TOOLS_SIZE),
        memory(SOCKETS, SOCKETS_SIZE),
        memory(WORK, group.memory.exchange),
        cache(cluster, group),
        token(cluster),
        authority(cluster),
        directory(&format!("{TEMPORARY}-{}", names::AGENT_CONTAINER), temporary),
    ];
    volumes.extend(store_authority(cluster));
    for slot in slots(group) {
        let name = slot.name(group);
        volumes.push(directory(&format!("{TEMPORARY}-{name}"), temporary));
        let shared = shared_memory(&slot, group);
        if shared.0 > 0 {
            volumes.push(memory(&format!("{SHARED_MEMORY}-{name}"), shared));
        }
    }
    volumes
}

/// For the init container.
pub(super) fn of_tools() -> Vec<VolumeMount> {
    vec![mount(TOOLS, names::TOOLS_DIRECTORY)]
}

/// For the agent.
pub(super) fn of_agent(cluster: &ValidatedCluster) -> Vec<VolumeMount> {
    let mut mounts = vec![
        mount(SOCKETS, names::SOCKET_DIRECTORY),
        mount(WORK, names::WORK_DIRECTORY),
        read_only(TOKEN, names::TOKEN_DIRECTORY),
        read_only(AUTHORITY, names::CA_DIRECTORY),
        mount(&format!("{TEMPORARY}-{}", names::AGENT_CONTAINER), "/tmp"),
    ];
    if cluster.store.authority.is_some() {
        mounts.push(read_only(STORE_AUTHORITY, STORE_AUTHORITY_DIRECTORY));
    }
    mounts
}

/// For a prover.
pub(super) fn of_prover(slot: &Slot, group: &Group) -> Vec<VolumeMount> {
    let name = slot.name(group);
    let mut mounts = vec![
        read_only(TOOLS, names::TOOLS_DIRECTORY),
        mount(SOCKETS, names::SOCKET_DIRECTORY),
        mount(WORK, names::WORK_DIRECTORY),
        mount(CACHE, names::CACHE_DIRECTORY),
        mount(&format!("{TEMPORARY}-{name}"), "/tmp"),
    ];
    if shared_memory(slot, group).0 > 0 {
        mounts.push(mount(&format!("{SHARED_MEMORY}-{name}"), "/dev/shm"));
    }
    mounts
}

/// CUDA and SP1's executor share memory between their processes through it, and 64 MiB are soon full.
fn shared_memory(slot: &Slot, group: &Group) -> Bytes {
    match slot {
        Slot::Device(_) => group.memory.shared_per_device,
        Slot::Control => group.memory.shared_by_planners,
    }
}

/// One key of a ConfigMap as a file of the same name.
pub(super) fn item(key: &str) -> KeyToPath {
    KeyToPath {
        key: key.to_owned(),
        path: key.to_owned(),
        mode: None,
    }
}

/// A folder for our own programs alone.
pub(super) fn tools() -> Volume {
    directory(TOOLS, TOOLS_SIZE)
}

fn directory(name: &str, size: Bytes) -> Volume {
    empty_directory(name, size, None)
}

fn memory(name: &str, size: Bytes) -> Volume {
    empty_directory(name, size, Some("Memory".to_owned()))
}

fn empty_directory(name: &str, size: Bytes, medium: Option<String>) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium,
            size_limit: Some(bytes(size)),
        }),
        ..Volume::default()
    }
}

fn cache(cluster: &ValidatedCluster, group: &Group) -> Volume {
    let Some(class) = &group.cache.storage_class else {
        return directory(CACHE, group.cache.size);
    };
    let storage = [("storage".to_owned(), bytes(group.cache.size))];
    let mut claim = PersistentVolumeClaimTemplate {
        metadata: None,
        spec: PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some(
                    storage
                        .into_iter()
                        .collect::<std::collections::BTreeMap<String, Quantity>>(),
                ),
                limits: None,
            }),
            storage_class_name: Some(class.clone()),
            ..PersistentVolumeClaimSpec::default()
        },
    };
    let mut found_by = group_selector(&cluster.identity, &group.name);
    found_by.extend(labels([(names::NAME_LABEL, names::PROJECT)]));
    claim.metadata.get_or_insert_default().labels = Some(found_by);
    Volume {
        name: CACHE.to_owned(),
        ephemeral: Some(EphemeralVolumeSource {
            volume_claim_template: Some(claim),
        }),
        ..Volume::default()
    }
}

fn token(cluster: &ValidatedCluster) -> Volume {
    let (namespace, name) = (&cluster.identity.namespace, &cluster.identity.name);
    Volume {
        name: TOKEN.to_owned(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![VolumeProjection {
                service_account_token: Some(ServiceAccountTokenProjection {
                    audience: Some(names::worker_audience(namespace, name)),
                    expiration_seconds: Some(TOKEN_SECONDS),
                    path: "token".to_owned(),
                }),
                ..VolumeProjection::default()
            }]),
            default_mode: None,
        }),
        ..Volume::default()
    }
}

fn authority(cluster: &ValidatedCluster) -> Volume {
    Volume {
        name: AUTHORITY.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: names::ca_bundle(&cluster.identity.name),
            items: Some(vec![item("ca.crt")]),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}
