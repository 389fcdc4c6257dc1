//! What is built, field by field, for every preset and override.

use std::collections::BTreeSet;

use kube::ResourceExt;
use prover_crds::{CapacityType, Device, GpuDevice, ProverCluster, Provider, WorkerGroup, names};
use serde_json::{Value, json};

use super::*;
use crate::prover_cluster::fixtures::{built, everything, pins, smallest, surroundings, valid};
use crate::prover_cluster::validate::Image;

fn of_kind(resources: &Resources, kind: Kind) -> Vec<&Manifest> {
    resources
        .manifests
        .iter()
        .filter(|manifest| manifest.kind == kind)
        .collect()
}

fn one<'a>(resources: &'a Resources, kind: Kind, name: &str) -> &'a Value {
    let found = of_kind(resources, kind)
        .into_iter()
        .find(|manifest| manifest.name == name);
    &found
        .unwrap_or_else(|| panic!("no {} {name}", kind.as_str()))
        .body
}

fn worker<'a>(resources: &'a Resources, group: &str) -> &'a Value {
    one(resources, Kind::Deployment, &resources.current[group])
}

/// The pod of a group.
fn pod<'a>(resources: &'a Resources, group: &str) -> &'a Value {
    &worker(resources, group)["spec"]["template"]["spec"]
}

fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let containers = pod["containers"].as_array().expect("containers");
    containers
        .iter()
        .find(|container| container["name"] == name)
        .unwrap_or_else(|| panic!("no container {name}"))
}

fn container_names(pod: &Value) -> Vec<&str> {
    pod["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|container| container["name"].as_str().unwrap())
        .collect()
}

fn volume<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let volumes = pod["volumes"].as_array().unwrap();
    volumes
        .iter()
        .find(|volume| volume["name"] == name)
        .unwrap_or_else(|| panic!("no volume {name}"))
}

fn mounts(container: &Value) -> BTreeSet<&str> {
    let mounts = container["volumeMounts"].as_array().unwrap();
    mounts
        .iter()
        .map(|mount| mount["mountPath"].as_str().unwrap())
        .collect()
}

fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a Value> {
    container["env"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|variable| variable["name"] == name)
}

fn with_group(mutate: impl FnOnce(&mut WorkerGroup)) -> Resources {
    let mut cluster = smallest();
    mutate(&mut cluster.spec.worker_groups[0]);
    built(&cluster)
}

fn with_gpu(provider: Option<Provider>, capacity: CapacityType, gpu: GpuDevice) -> Value {
    let resources = with_group(|group| {
        group.device = Device {
            cpu: None,
            gpu: Some(gpu),
        };
        group.provider = provider;
        group.capacity_type = capacity;
    });
    pod(&resources, "cpu").clone()
}

fn required(pod: &Value) -> Value {
    let required = &pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    required["nodeSelectorTerms"][0]["matchExpressions"].clone()
}

fn preferred_keys(pod: &Value) -> Vec<String> {
    let preferred = &pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"];
    let terms = preferred.as_array().into_iter().flatten();
    terms
        .map(|term| {
            term["preference"]["matchExpressions"][0]["key"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect()
}

#[test]
fn the_smallest_cluster_is_made_of_these_in_this_order() {
    let resources = built(&smallest());
    let made: Vec<String> = resources
        .manifests
        .iter()
        .map(|m| format!("{} {}", m.kind.as_str(), m.name))
        .collect();
    let worker = format!("Deployment {}", resources.current["cpu"]);
    assert_eq!(
        made,
        [
            "ServiceAccount main-coordinator",
            "ServiceAccount main-worker",
            "Role main-coordinator",
            "RoleBinding main-coordinator",
            "Role proving.rs:proving:main",
            "RoleBinding proving.rs:proving:main",
            "ConfigMap main-namespaces",
            "Service main-coordinator",
            "Service main-coordinator-leader",
            "NetworkPolicy main-coordinator",
            "NetworkPolicy main-worker",
            "PodDisruptionBudget main-coordinator",
            "PodDisruptionBudget main.cpu",
            "Deployment main-coordinator",
            worker.as_str(),
        ]
    );
}

#[test]
fn everything_carries_the_labels_of_its_cluster_and_goes_with_it() {
    for manifest in built(&everything()).manifests {
        let metadata = &manifest.body["metadata"];
        assert_eq!(
            metadata["labels"][names::CLUSTER_LABEL],
            "main",
            "{}",
            manifest.name
        );
        assert_eq!(metadata["labels"][names::CLUSTER_NAMESPACE_LABEL], "proving");
        assert_eq!(metadata["labels"][names::MANAGED_BY_LABEL], names::PROJECT);
        let owner = &metadata["ownerReferences"][0];
        assert_eq!(
            (&owner["kind"], &owner["controller"]),
            (&json!("ProverCluster"), &json!(true))
        );
        assert_eq!(metadata["annotations"][APPLIED_HASH_ANNOTATION], manifest.hash);
    }
}

#[test]
fn building_twice_builds_the_same() {
    assert_eq!(built(&everything()), built(&everything()));
}

#[test]
fn objects_in_other_namespaces_have_no_owner_and_a_name_that_no_other_cluster_has() {
    let cluster = valid(&smallest());
    let mut surroundings = surroundings();
    surroundings.namespaces = vec!["proving".to_owned(), "team-a".to_owned()];
    let resources = build(&cluster, &surroundings, &pins(&cluster, "x"));
    let foreign: Vec<&Manifest> = resources
        .manifests
        .iter()
        .filter(|m| m.namespace == "team-a")
        .collect();
    assert_eq!(foreign.len(), 2);
    for manifest in foreign {
        assert_eq!(manifest.name, "proving.rs:proving:main");
        assert!(manifest.body["metadata"]["ownerReferences"].is_null());
    }
    let list = &one(&resources, Kind::ConfigMap, "main-namespaces")["data"][names::NAMESPACES_KEY];
    assert_eq!(list, "proving\nteam-a\n");
}

#[test]
fn a_coordinator_may_look_after_jobs_and_read_single_sources_and_nothing_else() {
    let resources = built(&smallest());
    let rules = |name: &str| {
        let rules = one(&resources, Kind::Role, name)["rules"]
            .as_array()
            .unwrap()
            .clone();
        rules
            .iter()
            .map(|rule| {
                let words = |value: &Value| {
                    value
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|word| word.as_str().unwrap())
                        .collect::<Vec<_>>()
                        .join(",")
                };
                let names = rule["resourceNames"]
                    .as_array()
                    .map(|_| words(&rule["resourceNames"]))
                    .unwrap_or_default();
                format!(
                    "{} [{names}] {}",
                    words(&rule["resources"]),
                    words(&rule["verbs"])
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(
        rules("main-coordinator"),
        [
            "proverclusters [main] get,list,watch",
            "configmaps [main-namespaces] get,list,watch",
            "pods [] get,list,watch,patch",
            "leases [] create",
            "leases [main-coordinator] get,update",
            "events [] create,patch",
        ]
    );
    assert_eq!(
        rules("proving.rs:proving:main"),
        [
            "proofjobs [] get,list,watch",
            "proofjobs/status [] patch",
            "events [] create,patch",
            "configmaps,secrets [] get"
        ]
    );
    let binding = one(&resources, Kind::RoleBinding, "proving.rs:proving:main");
    assert_eq!(
        binding["subjects"],
        json!([{ "kind": "ServiceAccount", "name": "main-coordinator", "namespace": "proving" }])
    );
}

#[test]
fn a_worker_runs_an_agent_a_prover_per_device_and_one_for_planners() {
    let resources = with_group(|group| group.device.cpu.as_mut().unwrap().count = Some(2));
    let pod = pod(&resources, "cpu");
    assert_eq!(
        container_names(pod),
        ["agent", "backend-cpu-0", "backend-cpu-1", "backend-control"]
    );
    assert_eq!(
        pod["initContainers"][0]["args"],
        json!(["install-tools", "--to=/prover/bin"])
    );
    let prover = container(pod, "backend-cpu-1");
    assert_eq!(prover["command"], json!(["/prover/bin/prover-supervisor"]));
    assert_eq!(
        prover["args"],
        json!([
            "--socket=/prover/run/cpu-1.sock",
            "--",
            "/usr/local/bin/prover-backend-risc0"
        ])
    );
    assert_eq!(pod["terminationGracePeriodSeconds"], 630);
}

#[test]
fn an_agent_is_told_all_it_needs() {
    let resources = built(&smallest());
    let agent = container(pod(&resources, "cpu"), "agent");
    assert_eq!(
        agent["args"],
        json!([
            "--coordinator=https://main-coordinator.proving.svc:7000",
            "--coordinator-ca-file=/etc/prover/ca/ca.crt",
            "--coordinator-server-name=coordinator.proving.rs",
            "--token-file=/var/run/secrets/proving.rs/token",
            "--worker-id=$(POD_NAME)",
            "--worker-group=cpu",
            "--store=s3://proofs",
            "--work-directory=/prover/work",
            "--backend-sockets=/prover/run",
            "--devices=1",
            "--device-class=cpu",
            // 4 GiB without the 1 GiB in which artifacts pass.
            "--host-memory=3221225472",
            "--drain-seconds=600",
            "--metrics-address=0.0.0.0:9090",
        ])
    );
    let token = &volume(pod(&resources, "cpu"), "token")["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(
        token,
        &json!({ "audience": "proving.rs/workers/proving/main", "expirationSeconds": 3600, "path": "token" })
    );
}

#[test]
fn provers_get_neither_credentials_nor_token_nor_authority() {
    let resources = built(&everything());
    for group in ["gpu", "claim", "slice", "gnark"] {
        let pod = pod(&resources, group);
        assert_eq!(pod["automountServiceAccountToken"], false);
        for name in container_names(pod).into_iter().filter(|name| *name != "agent") {
            let prover = container(pod, name);
            let env = prover["env"].as_array().unwrap();
            assert!(
                env.iter()
                    .all(|variable| !variable["name"].as_str().unwrap().starts_with("AWS_")),
                "{name}"
            );
            for folder in [
                names::TOKEN_DIRECTORY,
                names::CA_DIRECTORY,
                "/etc/prover/store",
                names::TLS_DIRECTORY,
            ] {
                assert!(!mounts(prover).contains(folder), "{name} has {folder}");
            }
        }
        let agent = container(pod, "agent");
        let key = &variable(agent, "AWS_ACCESS_KEY_ID").unwrap()["valueFrom"]["secretKeyRef"];
        assert_eq!(key, &json!({ "name": "bucket", "key": "accessKeyId" }));
        let session = &variable(agent, "AWS_SESSION_TOKEN").unwrap()["valueFrom"]["secretKeyRef"];
        assert_eq!(session["optional"], true);
    }
}

#[test]
fn clouds_give_the_identity_of_a_pod_to_its_agent_alone() {
    let resources = built(&smallest());
    let annotations = &worker(&resources, "cpu")["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(
        annotations["eks.amazonaws.com/skip-containers"],
        "backend-cpu-0,backend-control"
    );
    assert_eq!(
        annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"],
        "false"
    );
    assert_eq!(annotations["karpenter.sh/do-not-disrupt"], "true");
}

#[test]
fn nothing_runs_as_root_or_writes_outside_its_volumes() {
    let resources = built(&everything());
    let templates = of_kind(&resources, Kind::Deployment)
        .into_iter()
        .chain(of_kind(&resources, Kind::DaemonSet));
    for manifest in templates {
        let pod = &manifest.body["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["fsGroup"], 65_532);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let init = pod["initContainers"].as_array().into_iter().flatten();
        for container in pod["containers"].as_array().unwrap().iter().chain(init) {
            let security = &container["securityContext"];
            assert_eq!(security["readOnlyRootFilesystem"], true, "{}", container["name"]);
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["capabilities"], json!({ "drop": ["ALL"] }));
            assert_eq!(security["runAsUser"], 65_532);
            assert!(
                !container["resources"]["limits"]["memory"].is_null(),
                "{}",
                container["name"]
            );
        }
    }
}

#[test]
fn requests_of_provers_add_up_to_the_memory_of_the_group_and_each_is_held_to_it() {
    let resources = built(&everything());
    let pod = pod(&resources, "gpu");
    let gib = |name: &str, what: &str| {
        container(pod, name)["resources"][what]["memory"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(gib("backend-control", "requests"), "1Gi");
    assert_eq!(
        (gib("backend-gpu-0", "requests"), gib("backend-gpu-1", "requests")),
        ("32256Mi".into(), "32256Mi".into())
    );
    for name in ["backend-control", "backend-gpu-0", "backend-gpu-1"] {
        assert_eq!(gib(name, "limits"), "64Gi");
    }
    // Inputs that the agent writes into the tmpfs count as its own memory.
    assert_eq!(gib("agent", "limits"), "8704Mi");
    let cpu = |name: &str| container(pod, name)["resources"]["requests"]["cpu"].clone();
    assert_eq!(
        (cpu("backend-control"), cpu("backend-gpu-0")),
        (json!("1"), json!("7500m"))
    );
    assert!(container(pod, "backend-gpu-0")["resources"]["limits"]["cpu"].is_null());
    assert_eq!(
        container(pod, "backend-gpu-0")["resources"]["limits"]["ephemeral-storage"],
        "100Gi"
    );
}

#[test]
fn what_does_not_divide_is_lost_nowhere() {
    let resources = with_group(|group| {
        group.device.cpu.as_mut().unwrap().count = Some(3);
        group.resources.as_mut().unwrap().memory = Some("1000000001".into());
        group.resources.as_mut().unwrap().cpu = Some("1".into());
    });
    let pod = pod(&resources, "cpu");
    let total = |what: &str| -> u64 {
        let containers = container_names(pod).into_iter().filter(|name| *name != "agent");
        containers
            .map(|name| {
                let text = container(pod, name)["resources"]["requests"][what]
                    .as_str()
                    .unwrap();
                prover_crds::Quantity::from(text).thousandths().unwrap()
            })
            .sum()
    };
    assert_eq!((total("memory"), total("cpu")), (1_000_000_001_000, 1_000));
}

#[test]
fn each_gpu_goes_to_a_prover_of_its_own_and_planners_see_none() {
    let resources = built(&everything());
    let gpus = pod(&resources, "gpu");
    for name in ["backend-gpu-0", "backend-gpu-1"] {
        assert_eq!(
            container(gpus, name)["resources"]["limits"]["nvidia.com/gpu"],
            "1"
        );
    }
    for name in ["agent", "backend-control"] {
        assert!(
            container(gpus, name)["resources"]["limits"]["nvidia.com/gpu"].is_null(),
            "{name}"
        );
    }
    assert_eq!(
        variable(container(gpus, "backend-control"), "NVIDIA_VISIBLE_DEVICES").unwrap()["value"],
        "none"
    );
    assert!(variable(container(gpus, "backend-gpu-0"), "NVIDIA_VISIBLE_DEVICES").is_none());
    let slice = container(pod(&resources, "slice"), "backend-gpu-0");
    assert_eq!(slice["resources"]["requests"]["nvidia.com/mig-1g.10gb"], "1");
}

#[test]
fn each_claim_is_the_pods_and_one_provers() {
    let resources = built(&everything());
    let pod = pod(&resources, "claim");
    assert_eq!(
        pod["resourceClaims"],
        json!([
            { "name": "gpu-0", "resourceClaimTemplateName": "one-gpu" },
            { "name": "gpu-1", "resourceClaimTemplateName": "one-gpu" },
        ])
    );
    assert_eq!(
        container(pod, "backend-gpu-1")["resources"]["claims"],
        json!([{ "name": "gpu-1" }])
    );
    assert!(container(pod, "backend-control")["resources"]["claims"].is_null());
}

#[test]
fn volumes_have_limits_and_shared_memory_is_for_gpus() {
    let resources = built(&everything());
    let gpus = pod(&resources, "gpu");
    assert_eq!(
        volume(gpus, "work")["emptyDir"],
        json!({ "medium": "Memory", "sizeLimit": "8Gi" })
    );
    assert_eq!(
        volume(gpus, "shm-gpu-1")["emptyDir"],
        json!({ "medium": "Memory", "sizeLimit": "1Gi" })
    );
    assert!(mounts(container(gpus, "backend-gpu-1")).contains("/dev/shm"));
    assert!(!mounts(container(gpus, "backend-control")).contains("/dev/shm"));
    let claim = &volume(gpus, "cache")["ephemeral"]["volumeClaimTemplate"]["spec"];
    assert_eq!(
        (
            &claim["storageClassName"],
            &claim["resources"]["requests"]["storage"]
        ),
        (&json!("fast"), &json!("50Gi"))
    );
    let cpus = pod(&resources, "gnark");
    assert_eq!(volume(cpus, "cache")["emptyDir"]["sizeLimit"], "10Gi");
    assert!(!mounts(container(cpus, "backend-cpu-0")).contains("/dev/shm"));
    for pod in [gpus, cpus] {
        for volume in pod["volumes"].as_array().unwrap() {
            assert!(
                volume["emptyDir"].is_null() || !volume["emptyDir"]["sizeLimit"].is_null(),
                "{volume}"
            );
        }
    }
    // 64 GiB without 8 for artifacts and 1 for each of two GPUs.
    let args = container(gpus, "agent")["args"].as_array().unwrap();
    assert!(args.contains(&json!(format!("--host-memory={}", 54_u64 << 30))));
}

/// SP1 on workers of several sizes, beside another proof system.
fn mk_sp1_cluster(memories: &[&str]) -> ProverCluster {
    let mut cluster = smallest();
    let group = |(index, memory): (usize, &&str)| json!({ "name": format!("sp1-{index}"), "backend": "sp1", "device": { "cpu": {} }, "resources": { "memory": memory } });
    let mut groups: Vec<_> = memories.iter().enumerate().map(group).collect();
    groups.push(json!({ "name": "risc0", "backend": "risc0", "device": { "cpu": {} }, "resources": { "memory": "4Gi" } }));
    cluster.spec.worker_groups = serde_json::from_value(Value::Array(groups)).unwrap();
    cluster.spec.backends = serde_json::from_value(json!([
        { "name": "sp1", "system": "sp1", "image": "localhost/sp1:1" },
        { "name": "risc0", "system": "risc0", "image": "localhost/risc0:1" },
    ]))
    .unwrap();
    cluster
}

/// What every container with a prover of a group is told of shards.
fn shards_of(pod: &Value) -> Vec<(String, Option<Value>, Option<Value>)> {
    let containers = container_names(pod).into_iter().skip(1);
    containers
        .map(|name| {
            let value = |wanted: &str| Some(variable(container(pod, name), wanted)?["value"].clone());
            let (elements, memory) = (
                value("SP1_BACKEND_ELEMENT_THRESHOLD"),
                value("SP1_BACKEND_EXECUTOR_MEMORY"),
            );
            (name.to_owned(), elements, memory)
        })
        .collect()
}

#[test]
fn all_sp1_provers_of_a_cluster_cut_shards_as_the_smallest_of_them_can_prove_them() {
    for (memories, elements, executor) in [
        (
            &["64Gi", "48Gi"][..],
            (1_u64 << 28) + (1 << 27),
            (48_u64 << 30) / 10,
        ),
        (&["64Gi", "24Gi"][..], 1 << 27, (24 << 30) / 10),
        (&["16Gi"][..], 1 << 27, 2 << 30),
    ] {
        let resources = built(&mk_sp1_cluster(memories));
        for index in 0..memories.len() {
            let shards = shards_of(pod(&resources, &format!("sp1-{index}")));
            assert_eq!(shards.len(), 2, "a device and the planners: {shards:?}");
            for (container, told_elements, told_executor) in shards {
                assert_eq!(told_elements, Some(json!(elements.to_string())), "{container}");
                assert_eq!(told_executor, Some(json!(executor.to_string())), "{container}");
            }
        }
        let others = shards_of(pod(&resources, "risc0"));
        assert!(
            others
                .iter()
                .all(|(_, elements, memory)| elements.is_none() && memory.is_none())
        );
    }
}

#[test]
fn sp1_shards_are_smaller_unless_all_gpus_are_known_to_have_memory_for_large_ones() {
    let reference = (1_u64 << 28) + (1 << 27);
    let any_gpu = reference - (1 << 26) - (1 << 25) - (1 << 24);
    for (gpu, elements) in [
        (json!({}), any_gpu),
        (json!({ "minMemory": "24Gi" }), any_gpu),
        (json!({ "minMemory": "40Gi" }), reference),
    ] {
        let mut cluster = mk_sp1_cluster(&["64Gi", "64Gi"]);
        let device = json!({ "gpu": gpu });
        cluster.spec.worker_groups[0].device = serde_json::from_value(device.clone()).unwrap();
        let resources = built(&cluster);
        for group in ["sp1-0", "sp1-1"] {
            for (container, told, _) in shards_of(pod(&resources, group)) {
                assert_eq!(
                    told,
                    Some(json!(elements.to_string())),
                    "{container} beside {device}"
                );
            }
        }
    }
}

#[test]
fn the_planners_of_sp1_have_shared_memory_for_the_executor_and_book_it_themselves() {
    let resources = built(&mk_sp1_cluster(&["24Gi"]));
    let sp1 = pod(&resources, "sp1-0");
    assert_eq!(
        volume(sp1, "shm-control")["emptyDir"],
        json!({ "medium": "Memory", "sizeLimit": "12Gi" })
    );
    assert!(mounts(container(sp1, "backend-control")).contains("/dev/shm"));
    assert!(!mounts(container(sp1, "backend-cpu-0")).contains("/dev/shm"));
    assert_eq!(
        container(sp1, "backend-control")["resources"]["limits"]["memory"],
        "24Gi"
    );
    // All but the 6 GiB in which artifacts pass.
    let args = container(sp1, "agent")["args"].as_array().unwrap();
    assert!(args.contains(&json!(format!("--host-memory={}", 18_u64 << 30))));
    assert!(!mounts(container(pod(&resources, "risc0"), "backend-control")).contains("/dev/shm"));
}

#[test]
fn a_command_backend_runs_our_program_in_the_users_image() {
    let resources = built(&everything());
    let prover = container(pod(&resources, "gnark"), "backend-cpu-2");
    assert_eq!(
        (&prover["image"], &prover["imagePullPolicy"]),
        (&json!("localhost/gnark:1"), &json!("Always"))
    );
    assert_eq!(prover["args"][2], "/prover/bin/prover-backend-command");
    let configuration = |resources: &Resources| -> Value {
        let prover = container(pod(resources, "gnark"), "backend-cpu-2");
        let variable = variable(prover, "PROVER_COMMAND_CONFIG").unwrap();
        serde_json::from_str(variable["value"].as_str().unwrap()).unwrap()
    };
    let before = configuration(&resources);
    assert_eq!(
        (&before["backend"], &before["prove"][0]),
        (&json!("gnark"), &json!("/prove"))
    );
    let mut cluster = everything();
    cluster.spec.backends[1].image = "localhost/gnark:2".to_owned();
    assert_ne!(configuration(&built(&cluster))["version"], before["version"]);
}

#[test]
fn gke_machines_are_asked_for_in_its_words() {
    let product = |name: &str| GpuDevice {
        product: Some(name.to_owned()),
        ..GpuDevice::default()
    };
    let pod = with_gpu(
        Some(Provider::Gke),
        CapacityType::Spot,
        product("NVIDIA H100 80GB HBM3"),
    );
    assert_eq!(
        required(&pod),
        json!([
            { "key": "cloud.google.com/gke-spot", "operator": "In", "values": ["true"] },
            { "key": "cloud.google.com/gke-accelerator", "operator": "In", "values": ["nvidia-h100-80gb"] },
        ])
    );
    assert_eq!(
        pod["tolerations"],
        json!([
            { "key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule" },
            { "key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule" },
        ])
    );
    let other = with_gpu(Some(Provider::Gke), CapacityType::OnDemand, product("NVIDIA X1"));
    assert_eq!(
        required(&other),
        json!([
            { "key": "cloud.google.com/gke-spot", "operator": "DoesNotExist" },
            { "key": "cloud.google.com/gke-accelerator", "operator": "Exists" },
        ])
    );
    let slice = GpuDevice {
        mig_profile: Some("1g.10gb".to_owned()),
        ..GpuDevice::default()
    };
    let slice = with_gpu(Some(Provider::Gke), CapacityType::OnDemand, slice);
    assert_eq!(
        required(&slice)[2]["key"],
        "cloud.google.com/gke-gpu-partition-size"
    );
}

#[test]
fn eks_aks_and_karpenter_machines_are_asked_for_in_their_words() {
    let gpu = || GpuDevice {
        min_memory: Some("24Gi".into()),
        ..GpuDevice::default()
    };
    let eks = with_gpu(Some(Provider::Eks), CapacityType::Spot, gpu());
    assert_eq!(
        required(&eks),
        json!([{ "key": "eks.amazonaws.com/capacityType", "operator": "In", "values": ["SPOT"] }])
    );
    assert_eq!(eks["terminationGracePeriodSeconds"], 130);
    let aks = with_gpu(Some(Provider::Aks), CapacityType::Spot, gpu());
    assert_eq!(
        required(&aks),
        json!([
            { "key": "kubernetes.azure.com/scalesetpriority", "operator": "In", "values": ["spot"] },
            { "key": "kubernetes.azure.com/accelerator", "operator": "In", "values": ["nvidia"] },
        ])
    );
    assert_eq!(
        aks["tolerations"][0]["key"],
        "kubernetes.azure.com/scalesetpriority"
    );
    assert_eq!(aks["tolerations"][2]["key"], "sku");
    let karpenter = with_gpu(Some(Provider::Karpenter), CapacityType::OnDemand, gpu());
    assert_eq!(
        required(&karpenter),
        json!([{ "key": "karpenter.sh/capacity-type", "operator": "NotIn", "values": ["spot"] }])
    );
    assert_eq!(
        preferred_keys(&karpenter),
        ["karpenter.k8s.aws/instance-gpu-memory", "nvidia.com/gpu.memory"]
    );
}

#[test]
fn labels_that_come_after_the_node_are_never_required() {
    let gpu = GpuDevice {
        product: Some("NVIDIA H100 80GB HBM3".to_owned()),
        min_memory: Some("80Gi".into()),
        ..GpuDevice::default()
    };
    for provider in [
        None,
        Some(Provider::Gke),
        Some(Provider::Eks),
        Some(Provider::Aks),
        Some(Provider::Karpenter),
    ] {
        for capacity in [CapacityType::OnDemand, CapacityType::Spot] {
            let pod = with_gpu(provider, capacity, gpu.clone());
            let required = required(&pod);
            let keys = required
                .as_array()
                .into_iter()
                .flatten()
                .map(|label| label["key"].as_str().unwrap());
            assert!(
                !keys.into_iter().any(|key| key.starts_with("nvidia.com/")),
                "{provider:?}"
            );
            assert!(preferred_keys(&pod).contains(&"nvidia.com/gpu.product".to_owned()));
        }
    }
    let pod = with_gpu(None, CapacityType::OnDemand, gpu);
    let preferred = &pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"];
    assert_eq!(
        preferred[0]["preference"]["matchExpressions"][0]["values"],
        json!(["NVIDIA-H100-80GB-HBM3"])
    );
    assert_eq!(
        preferred[1]["preference"]["matchExpressions"][0]["values"],
        json!(["81919"])
    );
}

#[test]
fn overrides_arrive_in_the_pods_of_workers_and_coordinator() {
    let resources = built(&everything());
    for pod in [
        pod(&resources, "gpu"),
        &one(&resources, Kind::Deployment, "main-coordinator")["spec"]["template"]["spec"],
    ] {
        assert_eq!(pod["nodeSelector"], json!({ "pool": "provers" }));
        assert_eq!(pod["priorityClassName"], "proofs");
        assert_eq!(pod["runtimeClassName"], "nvidia");
        assert_eq!(pod["schedulerName"], "batch");
        assert_eq!(pod["imagePullSecrets"], json!([{ "name": "registry" }]));
        let required = required(pod);
        let last = required.as_array().unwrap().last().unwrap();
        assert_eq!(
            last,
            &json!({ "key": "topology.kubernetes.io/region", "operator": "In", "values": ["eu"] })
        );
        assert!(preferred_keys(pod).contains(&"disk".to_owned()));
        let tolerations = pod["tolerations"].as_array().unwrap();
        assert_eq!(
            tolerations.last().unwrap(),
            &json!({ "key": "dedicated", "operator": "Equal", "value": "provers", "effect": "NoExecute" })
        );
        let spread = &pod["topologySpreadConstraints"];
        assert_eq!(
            (&spread[0]["topologyKey"], &spread[0]["maxSkew"]),
            (&json!("topology.kubernetes.io/zone"), &json!(2))
        );
        assert_eq!(spread[0]["whenUnsatisfiable"], "DoNotSchedule");
    }
    let template = &worker(&resources, "gpu")["spec"]["template"]["metadata"];
    assert_eq!(
        (
            &template["labels"]["team"],
            &template["annotations"]["example.com/scrape"]
        ),
        (&json!("zk"), &json!("true"))
    );
    let prover = container(pod(&resources, "gpu"), "backend-gpu-0");
    assert_eq!(variable(prover, "RUST_LOG").unwrap()["value"], "info");
    assert_eq!(
        variable(prover, "LICENSE").unwrap()["valueFrom"]["secretKeyRef"]["key"],
        "key"
    );
    assert!(variable(container(pod(&resources, "gpu"), "agent"), "LICENSE").is_none());
    let account = one(&resources, Kind::ServiceAccount, "main-worker");
    assert!(!account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].is_null());
}

#[test]
fn pods_spread_over_nodes_where_nothing_else_is_said() {
    let resources = built(&smallest());
    let spread = &pod(&resources, "cpu")["topologySpreadConstraints"];
    assert_eq!(spread[0]["topologyKey"], "kubernetes.io/hostname");
    assert_eq!(spread[0]["whenUnsatisfiable"], "ScheduleAnyway");
    let selector = spread[0]["labelSelector"]["matchLabels"].as_object().unwrap();
    assert_eq!(selector[names::GROUP_LABEL], "cpu");
}

#[test]
fn budgets_never_hold_up_the_drain_of_a_node() {
    let resources = built(&smallest());
    let budget = &one(&resources, Kind::PodDisruptionBudget, "main.cpu")["spec"];
    assert_eq!(
        (&budget["maxUnavailable"], &budget["unhealthyPodEvictionPolicy"]),
        (&json!("25%"), &json!("AlwaysAllow"))
    );
    // Pods of old revisions count, too.
    assert!(budget["selector"]["matchLabels"][names::REVISION_LABEL].is_null());
}

#[test]
fn images_are_fetched_early_where_that_is_wanted() {
    let resources = built(&everything());
    assert_eq!(of_kind(&resources, Kind::DaemonSet).len(), 1);
    let pod = &one(&resources, Kind::DaemonSet, "main.gpu")["spec"]["template"]["spec"];
    assert_eq!(pod["initContainers"][1]["image"], "localhost/risc0:1");
    assert_eq!(required(pod)[0]["key"], "cloud.google.com/gke-spot");
    assert!(pod["priorityClassName"].is_null());
    let labels = &one(&resources, Kind::DaemonSet, "main.gpu")["spec"]["template"]["metadata"]["labels"];
    assert_ne!(labels[names::COMPONENT_LABEL], names::WORKER);
}

#[test]
fn coordinators_take_their_workers_and_the_operator_and_workers_nobody() {
    let resources = built(&smallest());
    let coordinator = &one(&resources, Kind::NetworkPolicy, "main-coordinator")["spec"];
    assert_eq!(
        coordinator["ingress"],
        json!([
            { "from": [
                { "podSelector": { "matchLabels": { names::CLUSTER_LABEL: "main", names::COMPONENT_LABEL: "worker" } } },
                { "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "prover-operator" } } },
            ], "ports": [{ "port": 7000, "protocol": "TCP" }] },
            { "ports": [{ "port": 9090, "protocol": "TCP" }] },
        ])
    );
    let workers = &one(&resources, Kind::NetworkPolicy, "main-worker")["spec"];
    assert_eq!(
        workers["ingress"],
        json!([{ "ports": [{ "port": 9090, "protocol": "TCP" }] }])
    );
    // With an identity of the pod for the store, the cloud's address for identities must stay open.
    assert_eq!(workers["policyTypes"], json!(["Ingress"]));
    let closed = built(&everything());
    let workers = &one(&closed, Kind::NetworkPolicy, "main-worker")["spec"];
    assert_eq!(
        workers["egress"][1]["to"][1]["ipBlock"]["except"],
        json!(["169.254.169.254/32"])
    );
}

#[test]
fn a_coordinator_is_told_all_it_needs() {
    let resources = built(&smallest());
    let deployment = &one(&resources, Kind::Deployment, "main-coordinator")["spec"];
    assert_eq!(
        (&deployment["replicas"], &deployment["strategy"]),
        (
            &json!(2),
            &json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 1 } })
        )
    );
    let container = &deployment["template"]["spec"]["containers"][0];
    assert_eq!(
        container["args"],
        json!([
            "coordinator",
            "--namespace=proving",
            "--cluster=main",
            "--cluster-uid=11111111-2222-3333-4444-555555555555",
            "--listen=0.0.0.0:7000",
            "--tls-directory=/etc/prover/tls",
            "--store=s3://proofs",
            "--operator-service-account=prover-operator:operator",
            "--metrics-address=0.0.0.0:9090",
        ])
    );
    let service = &one(&resources, Kind::Service, "main-coordinator")["spec"];
    assert_eq!(service["clusterIP"], "None");
    assert_eq!(
        service["publishNotReadyAddresses"], true,
        "a leader is served although its probes fail"
    );
    assert!(service["selector"][names::ROLE_LABEL].is_null());
    let leader = &one(&resources, Kind::Service, "main-coordinator-leader")["spec"];
    assert_eq!(leader["selector"][names::ROLE_LABEL], names::LEADER);
    assert!(leader["clusterIP"].is_null());
    assert_eq!(leader["ports"], service["ports"]);
}

#[test]
fn a_single_coordinator_is_replaced_only_by_one_that_has_caught_up() {
    let mut cluster = smallest();
    let one_replica = serde_json::from_value(json!({ "replicas": 1 })).unwrap();
    cluster.spec.coordinator = Some(one_replica);
    let resources = built(&cluster);
    let deployment = &one(&resources, Kind::Deployment, "main-coordinator")["spec"];
    assert_eq!(deployment["replicas"], 1);
    let rolling = &deployment["strategy"]["rollingUpdate"];
    assert_eq!(rolling, &json!({ "maxSurge": 1, "maxUnavailable": 0 }));
}

#[test]
fn worker_deployments_leave_the_number_of_replicas_to_the_scaler() {
    let resources = built(&everything());
    for name in resources.current.values() {
        let manifest = of_kind(&resources, Kind::Deployment)
            .into_iter()
            .find(|m| m.name == *name)
            .unwrap();
        assert_eq!(manifest.creation, Creation::WithoutReplicas);
        assert!(manifest.body["spec"]["replicas"].is_null());
    }
}

#[test]
fn a_revision_changes_with_its_pods_and_with_nothing_else() {
    let revision = |cluster: &ProverCluster| built(cluster).current["cpu"].clone();
    let before = revision(&smallest());
    let mut cluster = smallest();
    let group = &mut cluster.spec.worker_groups[0];
    group.replicas = Some(7);
    group.cost = Some(prover_crds::Price {
        per_hour: "1".to_owned(),
        currency: "USD".to_owned(),
    });
    assert_eq!(revision(&cluster), before);
    cluster
        .labels_mut()
        .insert("changed".to_owned(), "yes".to_owned());
    assert_eq!(revision(&cluster), before);
    cluster.spec.backends[0].image = "localhost/prover-backend-risc0:0.2.0".to_owned();
    assert_ne!(revision(&cluster), before);
}

#[test]
fn an_operator_with_other_images_changes_neither_worker_nor_coordinator() {
    let cluster = valid(&smallest());
    let before = build(&cluster, &surroundings(), &pins(&cluster, "localhost/prover:1"));
    let annotations = |name: &str| -> metadata::Labels {
        serde_json::from_value(one(&before, Kind::Deployment, name)["metadata"]["annotations"].clone())
            .unwrap()
    };
    let newer = Image("localhost/prover:2".to_owned());
    let worker = annotations(&before.current["cpu"]);
    let coordinator = annotations("main-coordinator");
    let pinned = Pins {
        coordinator: pin_coordinator(&cluster, &surroundings(), [&coordinator], &newer),
        workers: [(
            "cpu".to_owned(),
            pin_worker(&cluster, &cluster.groups[0], &surroundings(), [&worker], &newer),
        )]
        .into(),
    };
    assert_eq!(build(&cluster, &surroundings(), &pinned), before);

    // A group whose specification changes gets the image of the operator that builds it.
    let mut changed = smallest();
    changed.spec.worker_groups[0].drain_seconds = Some(5);
    let changed = valid(&changed);
    assert_eq!(
        pin_worker(&changed, &changed.groups[0], &surroundings(), [&worker], &newer),
        newer
    );
}

#[test]
fn groups_and_clusters_that_only_look_alike_share_nothing() {
    let named = |cluster: &str, group: &str| {
        let mut object = smallest();
        object.metadata.name = Some(cluster.to_owned());
        object.spec.worker_groups[0].name = group.to_owned();
        let resources = built(&object);
        resources
            .manifests
            .into_iter()
            .map(|m| (m.kind, m.namespace, m.name))
            .collect::<BTreeSet<_>>()
    };
    assert!(named("a", "b-c").is_disjoint(&named("a-b", "c")));
    let coordinators: Vec<_> = named("a", "coordinator")
        .into_iter()
        .filter(|(kind, ..)| *kind == Kind::PodDisruptionBudget)
        .collect();
    assert_eq!(coordinators.len(), 2);
}
