//! What all containers have in common: who they run as, what they may not do, how they ask for resources.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, EnvVar, EnvVarSource, HTTPGetAction, ObjectFieldSelector, PodSecurityContext, Probe,
    ResourceRequirements, SeccompProfile, SecretKeySelector, SecurityContext, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use prover_crds::{EnvironmentVariable, names};

use crate::prover_cluster::validate::{Bytes, MilliCores, Store};

/// Seconds between two probes.
const PROBE_SECONDS: i32 = 5;
/// Failed probes in a row until a container is started again.
const LIVENESS_FAILURES: i32 = 6;
/// Failed probes in a row that a container may need to start.
const START_FAILURES: i32 = 24;

/// Keys of the Secret with credentials, as variables of the store's client.
const CREDENTIALS: [(&str, &str, bool); 3] = [
    ("AWS_ACCESS_KEY_ID", "accessKeyId", false),
    ("AWS_SECRET_ACCESS_KEY", "secretAccessKey", false),
    ("AWS_SESSION_TOKEN", "sessionToken", true),
];

/// Of a container: no way to more rights, nothing writable but volumes.
pub(super) fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            add: None,
        }),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_group: Some(names::USER_ID),
        run_as_non_root: Some(true),
        run_as_user: Some(names::USER_ID),
        ..SecurityContext::default()
    }
}

/// Of a pod.
pub(super) fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        fs_group: Some(names::USER_ID),
        // Changing the group of every file of a large cache at every start would take minutes.
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        run_as_group: Some(names::USER_ID),
        run_as_non_root: Some(true),
        run_as_user: Some(names::USER_ID),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            localhost_profile: None,
        }),
        ..PodSecurityContext::default()
    }
}

/// Probes of one process.
pub(super) struct Probes {
    /// Whether it must be started again.
    pub(super) liveness: Probe,
    /// Whether it may be given work.
    pub(super) readiness: Probe,
    /// Whether it has started.
    pub(super) startup: Probe,
}

/// Probes on the port of metrics.
pub(super) fn probes() -> Probes {
    let probe = |path: &str, failures: i32, period: i32| Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(METRICS_PORT_NAME.to_owned()),
            ..HTTPGetAction::default()
        }),
        failure_threshold: Some(failures),
        period_seconds: Some(period),
        timeout_seconds: Some(3),
        ..Probe::default()
    };
    Probes {
        liveness: probe("/healthz", LIVENESS_FAILURES, PROBE_SECONDS),
        readiness: probe("/readyz", 1, PROBE_SECONDS),
        startup: probe("/healthz", START_FAILURES * PROBE_SECONDS, 1),
    }
}

/// Name of the port of metrics.
pub(super) const METRICS_PORT_NAME: &str = "metrics";

/// A variable with a value.
pub(super) fn variable(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: Some(value.into()),
        ..EnvVar::default()
    }
}

/// A variable with the name of the pod.
pub(super) fn pod_name(name: &str) -> EnvVar {
    of_pod(name, "metadata.name")
}

/// A variable with the address of the pod.
pub(super) fn pod_address(name: &str) -> EnvVar {
    of_pod(name, "status.podIP")
}

fn of_pod(name: &str, field: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: field.to_owned(),
                // As the API server fills it in.
                api_version: Some("v1".to_owned()),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

/// A variable from a Secret.
pub(super) fn secret_variable(name: &str, secret: &str, key: &str, optional: bool) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: secret.to_owned(),
                key: key.to_owned(),
                optional: optional.then_some(true),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

/// Variables that users add.
pub(super) fn users_variables(variables: &[EnvironmentVariable]) -> Vec<EnvVar> {
    let convert = |variable: &EnvironmentVariable| match &variable.secret_ref {
        Some(reference) => secret_variable(&variable.name, &reference.name, &reference.key, false),
        None => self::variable(&variable.name, variable.value.clone().unwrap_or_default()),
    };
    variables.iter().map(convert).collect()
}

/// How a process signs in to the store. Never for a container that runs a prover.
pub(super) fn credentials(store: &Store) -> Vec<EnvVar> {
    let secret = store.credentials.iter();
    secret
        .flat_map(|secret| {
            CREDENTIALS.map(|(name, key, optional)| secret_variable(name, secret, key, optional))
        })
        .chain(
            store
                .authority
                .iter()
                .map(|(_, key)| variable("AWS_CA_BUNDLE", format!("{STORE_AUTHORITY_DIRECTORY}/{key}"))),
        )
        .collect()
}

/// Folder of the certificate of the store's private authority.
pub(super) const STORE_AUTHORITY_DIRECTORY: &str = "/etc/prover/store";

/// A mount that may be written.
pub(super) fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    }
}

/// A mount that may be read.
pub(super) fn read_only(volume: &str, path: &str) -> VolumeMount {
    VolumeMount {
        read_only: Some(true),
        ..mount(volume, path)
    }
}

/// What a container asks for, and what it is held to.
#[derive(Default)]
pub(super) struct Needs(ResourceRequirements);

impl Needs {
    /// Cores are shared by need, so there is no limit: one would only slow down what could run.
    pub(super) fn cpu(mut self, request: Option<MilliCores>) -> Needs {
        if let Some(request) = request {
            self.request("cpu", cores(request));
        }
        self
    }

    /// Memory: as much as asked for, at most the limit.
    pub(super) fn memory(mut self, request: Bytes, limit: Bytes) -> Needs {
        self.request("memory", bytes(request));
        self.limit("memory", bytes(limit));
        self
    }

    /// Space on the node's disk.
    pub(super) fn ephemeral_storage(mut self, request: Option<Bytes>, limit: Option<Bytes>) -> Needs {
        if let (Some(request), Some(limit)) = (request, limit) {
            self.request("ephemeral-storage", bytes(request));
            self.limit("ephemeral-storage", bytes(limit));
        }
        self
    }

    /// One device of a device plugin.
    pub(super) fn device(mut self, resource: &str) -> Needs {
        self.request(resource, Quantity("1".to_owned()));
        self.limit(resource, Quantity("1".to_owned()));
        self
    }

    /// As Kubernetes wants it.
    pub(super) fn into_requirements(self) -> ResourceRequirements {
        self.0
    }

    fn request(&mut self, name: &str, quantity: Quantity) {
        self.0
            .requests
            .get_or_insert_with(BTreeMap::new)
            .insert(name.to_owned(), quantity);
    }

    fn limit(&mut self, name: &str, quantity: Quantity) {
        self.0
            .limits
            .get_or_insert_with(BTreeMap::new)
            .insert(name.to_owned(), quantity);
    }
}

/// Bytes in the form that the API server keeps: another one would be written anew at every application.
pub(super) fn bytes(bytes: Bytes) -> Quantity {
    const BINARY: [(&str, u64); 5] = [
        ("Pi", 1 << 50),
        ("Ti", 1 << 40),
        ("Gi", 1 << 30),
        ("Mi", 1 << 20),
        ("Ki", 1 << 10),
    ];
    let binary = BINARY
        .into_iter()
        .find(|(_, unit)| bytes.0 > 0 && bytes.0.is_multiple_of(*unit));
    match binary {
        Some((suffix, unit)) => Quantity(format!("{}{suffix}", bytes.0 / unit)),
        None => decimal(bytes.0),
    }
}

/// Cores in the form that the API server keeps.
pub(super) fn cores(cores: MilliCores) -> Quantity {
    if cores.0.is_multiple_of(1_000) {
        decimal(cores.0 / 1_000)
    } else {
        Quantity(format!("{}m", cores.0))
    }
}

fn decimal(count: u64) -> Quantity {
    const DECIMAL: [(&str, u64); 5] = [
        ("P", 1_000_000_000_000_000),
        ("T", 1_000_000_000_000),
        ("G", 1_000_000_000),
        ("M", 1_000_000),
        ("k", 1_000),
    ];
    let exact = DECIMAL
        .into_iter()
        .find(|(_, unit)| count > 0 && count.is_multiple_of(*unit));
    Quantity(exact.map_or_else(
        || count.to_string(),
        |(suffix, unit)| format!("{}{suffix}", count / unit),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_the_form_that_the_api_server_keeps() {
        for (count, text) in [
            (1, "1"),
            (1_024, "1Ki"),
            (1_536 << 20, "1536Mi"),
            (250_000_000, "250M"),
            (1_000_001, "1000001"),
            (0, "0"),
        ] {
            assert_eq!(bytes(Bytes(count)).0, text);
        }
        for (count, text) in [(1, "1m"), (1_500, "1500m"), (2_000, "2"), (2_000_000, "2k")] {
            assert_eq!(cores(MilliCores(count)).0, text);
        }
    }
}
