//! The coordinator: its Deployment, its Service and the list of namespaces that it reads.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, PodSpec,
    PodTemplateSpec, SecretVolumeSource, Service, ServicePort, ServiceSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use prover_crds::names;

use super::container::{
    METRICS_PORT_NAME, Needs, STORE_AUTHORITY_DIRECTORY, container_security, credentials, mount, pod_address,
    pod_name, pod_security, probes, read_only, users_variables,
};
use super::metadata::{Labels, cluster_labels, coordinator_selector, labels, matching, owned};
use super::revision::{pin_annotations, specification};
use super::{Kind, Manifest, Pins, Surroundings, placement, volumes};
use crate::prover_cluster::validate::{Bytes, Image, ValidatedCluster};

/// Seconds that a coordinator has to hand over its lead and to tell its workers that it goes.
const GRACE_SECONDS: i64 = 30;
/// For temporary files; sources go to the store as a stream.
const TEMPORARY_SIZE: Bytes = Bytes::gibi(1);
const CONTAINER: &str = "coordinator";
const PORT_NAME: &str = "grpc";
const TLS_VOLUME: &str = "tls";
const TEMPORARY_VOLUME: &str = "tmp";
const AUTHORITY_VOLUME: &str = "store-authority";

/// The list of allowed namespaces, one per line.
pub(super) fn namespaces(cluster: &ValidatedCluster, surroundings: &Surroundings) -> Manifest {
    let list: String = surroundings
        .namespaces
        .iter()
        .map(|namespace| format!("{namespace}\n"))
        .collect();
    let config = ConfigMap {
        metadata: owned(
            &cluster.identity,
            names::namespaces_config(&cluster.identity.name),
            component(),
        ),
        data: Some(Labels::from([(names::NAMESPACES_KEY.to_owned(), list)])),
        ..ConfigMap::default()
    };
    Manifest::new(Kind::ConfigMap, &config)
}

/// Where workers find the coordinators, and where everybody else finds the one that leads.
///
/// The first one is headless, so that workers see each replica, whether or not it is ready: a replica that follows names
/// the one that leads, and a leader is served although its probes fail. The second one selects the label that a replica
/// sets at its own pod when it takes over.
pub(super) fn services(cluster: &ValidatedCluster) -> Vec<Manifest> {
    let identity = &cluster.identity;
    let all = ServiceSpec {
        cluster_ip: Some("None".to_owned()),
        publish_not_ready_addresses: Some(true),
        selector: Some(coordinator_selector(identity)),
        ..ServiceSpec::default()
    };
    let mut leading = coordinator_selector(identity);
    leading.extend(labels([(names::ROLE_LABEL, names::LEADER)]));
    let leader = ServiceSpec {
        selector: Some(leading),
        ..ServiceSpec::default()
    };
    vec![
        service(cluster, names::coordinator_name(&identity.name), all),
        service(cluster, names::leader_service(&identity.name), leader),
    ]
}

fn service(cluster: &ValidatedCluster, name: String, spec: ServiceSpec) -> Manifest {
    let port = |name: &str, number: u16| ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(number),
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    };
    let service = Service {
        metadata: owned(&cluster.identity, name, component()),
        spec: Some(ServiceSpec {
            ports: Some(vec![
                port(PORT_NAME, names::COORDINATOR_PORT),
                port(METRICS_PORT_NAME, names::METRICS_PORT),
            ]),
            ..spec
        }),
        ..Service::default()
    };
    Manifest::new(Kind::Service, &service)
}

/// The Deployment.
pub(super) fn deployment(cluster: &ValidatedCluster, surroundings: &Surroundings, pins: &Pins) -> Manifest {
    let identity = &cluster.identity;
    let mut metadata = owned(identity, names::coordinator_name(&identity.name), component());
    metadata.annotations = Some(pin_annotations(
        &specification_of(cluster, surroundings),
        &pins.coordinator,
    ));
    let deployment = Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            replicas: Some(cluster.coordinator.replicas),
            revision_history_limit: Some(2),
            selector: matching(coordinator_selector(identity)),
            strategy: Some(strategy(cluster.coordinator.replicas)),
            template: template(cluster, surroundings, &pins.coordinator),
            ..DeploymentSpec::default()
        }),
        status: None,
    };
    Manifest::new(Kind::Deployment, &deployment)
}

/// A new replica has caught up before an old one goes. Where there are several, one may go before that, so that a cluster
/// without room for one more is not stuck.
fn strategy(replicas: i32) -> DeploymentStrategy {
    DeploymentStrategy {
        type_: Some("RollingUpdate".to_owned()),
        rolling_update: Some(RollingUpdateDeployment {
            max_surge: Some(IntOrString::Int(1)),
            max_unavailable: Some(IntOrString::Int(i32::from(replicas > 1))),
        }),
    }
}

/// What the specification says of the coordinator, whatever its image.
pub(super) fn specification_of(cluster: &ValidatedCluster, surroundings: &Surroundings) -> String {
    specification(&template(cluster, surroundings, &Image(String::new())))
}

fn component() -> Labels {
    labels([(names::COMPONENT_LABEL, names::COORDINATOR)])
}

fn template(cluster: &ValidatedCluster, surroundings: &Surroundings, image: &Image) -> PodTemplateSpec {
    let identity = &cluster.identity;
    let pod = &cluster.coordinator.pod;
    let mut labels = cluster_labels(identity);
    labels.extend(component());
    labels.extend(pod.labels.clone());
    let mut spec = PodSpec {
        automount_service_account_token: Some(true),
        containers: vec![container(cluster, surroundings, image)],
        enable_service_links: Some(false),
        image_pull_secrets: placement::pull_secrets(surroundings, pod),
        security_context: Some(pod_security()),
        service_account_name: Some(names::coordinator_name(&identity.name)),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        volumes: Some(pod_volumes(cluster)),
        ..PodSpec::default()
    };
    placement::apply_overrides(&mut spec, pod, &coordinator_selector(identity), None);
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: (!pod.annotations.is_empty()).then(|| pod.annotations.clone()),
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
    }
}

fn container(cluster: &ValidatedCluster, surroundings: &Surroundings, image: &Image) -> Container {
    let port = |name: &str, number: u16| ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(number),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    let mut env = vec![pod_name("PROVER_POD_NAME"), pod_address("PROVER_POD_IP")];
    env.extend(credentials(&cluster.store));
    env.extend(users_variables(&cluster.coordinator.pod.env));
    let mut mounts = vec![
        read_only(TLS_VOLUME, names::TLS_DIRECTORY),
        mount(TEMPORARY_VOLUME, "/tmp"),
    ];
    if cluster.store.authority.is_some() {
        mounts.push(read_only(AUTHORITY_VOLUME, STORE_AUTHORITY_DIRECTORY));
    }
    let (memory, disk) = (cluster.coordinator.memory, cluster.coordinator.ephemeral_storage);
    let needs = Needs::default()
        .cpu(Some(cluster.coordinator.cpu))
        .memory(memory, memory)
        .ephemeral_storage(disk, disk);
    let probes = probes();
    Container {
        name: CONTAINER.to_owned(),
        image: Some(image.0.clone()),
        image_pull_policy: surroundings.pull_policy.clone(),
        command: Some(vec!["/usr/local/bin/prover-operator".to_owned()]),
        args: Some(arguments(cluster, surroundings)),
        env: Some(env),
        ports: Some(vec![
            port(PORT_NAME, names::COORDINATOR_PORT),
            port(METRICS_PORT_NAME, names::METRICS_PORT),
        ]),
        liveness_probe: Some(probes.liveness),
        readiness_probe: Some(probes.readiness),
        startup_probe: Some(probes.startup),
        resources: Some(needs.into_requirements()),
        security_context: Some(container_security()),
        // Its last words are what the status tells of a coordinator that can't start.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn arguments(cluster: &ValidatedCluster, surroundings: &Surroundings) -> Vec<String> {
    let (namespace, name) = (&cluster.identity.namespace, &cluster.identity.name);
    let operator = format!(
        "{}:{}",
        surroundings.operator_namespace, surroundings.operator_account
    );
    vec![
        "coordinator".to_owned(),
        format!("--namespace={namespace}"),
        format!("--cluster={name}"),
        format!("--cluster-uid={}", cluster.identity.uid),
        format!("--listen=0.0.0.0:{}", names::COORDINATOR_PORT),
        format!("--tls-directory={}", names::TLS_DIRECTORY),
        format!("--store={}", cluster.store.url),
        format!("--operator-service-account={operator}"),
        format!("--metrics-address=0.0.0.0:{}", names::METRICS_PORT),
    ]
}

fn pod_volumes(cluster: &ValidatedCluster) -> Vec<Volume> {
    let mut volumes = vec![
        Volume {
            name: TLS_VOLUME.to_owned(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(names::tls_secret(&cluster.identity.name)),
                // The process reads it as a member of the pod's group.
                default_mode: Some(0o440),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: TEMPORARY_VOLUME.to_owned(),
            empty_dir: Some(EmptyDirVolumeSource {
                size_limit: Some(super::container::bytes(TEMPORARY_SIZE)),
                medium: None,
            }),
            ..Volume::default()
        },
    ];
    volumes.extend(store_authority(cluster));
    volumes
}

/// The certificate of the store's private authority.
pub(super) fn store_authority(cluster: &ValidatedCluster) -> Option<Volume> {
    let (config_map, key) = cluster.store.authority.as_ref()?;
    Some(Volume {
        name: AUTHORITY_VOLUME.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: config_map.clone(),
            items: Some(vec![volumes::item(key)]),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    })
}
