//! Each error by one mutation of a good ProverCluster.

use prover_crds::{
    AllowedNamespaces as Allowed, CommandBackend, CpuDevice, Device, EnvironmentVariable, GpuDevice,
    NamespaceSelector, NamespacesFrom, Price, ProofSystem, Provider, Resources, Scaling, ScalingMode,
    WorkerGroup,
};

use super::*;
use crate::prover_cluster::fixtures::{everything, smallest};

fn refused(mutate: impl FnOnce(&mut ProverCluster)) -> ValidationError {
    let mut cluster = smallest();
    mutate(&mut cluster);
    let error = validate(&cluster).expect_err("the mutation is refused");
    assert!(
        error.to_string().starts_with("spec.") || error.to_string().starts_with("metadata."),
        "{error}"
    );
    error
}

fn group(cluster: &mut ProverCluster) -> &mut WorkerGroup {
    &mut cluster.spec.worker_groups[0]
}

fn category(mutate: impl FnOnce(&mut ProverCluster)) -> &'static str {
    refused(mutate).category()
}

#[test]
fn good_clusters_are_taken() {
    validate(&smallest()).unwrap();
    validate(&everything()).unwrap();
}

#[test]
fn names_that_fit_no_service_are_refused() {
    for name in ["two.words", "1st", "Upper", "ends-", &"x".repeat(41)] {
        let name = name.to_owned();
        assert_eq!(
            category(|cluster| cluster.metadata.name = Some(name.clone())),
            "name_unfit",
            "{name}"
        );
    }
}

#[test]
fn what_did_not_come_from_an_api_server_is_refused() {
    assert_eq!(category(|cluster| cluster.metadata.uid = None), "incomplete");
    assert_eq!(
        category(|cluster| cluster.metadata.namespace = None),
        "incomplete"
    );
}

#[test]
fn an_unknown_way_to_apply_is_refused() {
    let annotate = |cluster: &mut ProverCluster, value: &str| {
        cluster
            .annotations_mut()
            .insert(APPLY_ANNOTATION.to_owned(), value.to_owned());
    };
    assert_eq!(
        category(|cluster| annotate(cluster, "pause")),
        "apply_strategy_unknown"
    );
    for (value, strategy) in [
        ("paused", ApplyStrategy::Paused),
        ("dry-run", ApplyStrategy::DryRun),
    ] {
        let mut cluster = smallest();
        annotate(&mut cluster, value);
        assert_eq!(validate(&cluster).unwrap().strategy, strategy);
    }
}

#[test]
fn endpoints_that_are_no_services_are_refused() {
    for endpoint in [
        "minio",
        "ftp://minio:9000",
        "http://user:word@minio:9000",
        "http://minio:9000/bucket",
        "http://minio?x=1",
    ] {
        let set = |cluster: &mut ProverCluster| {
            cluster.spec.artifact_store.s3.endpoint = Some(endpoint.to_owned());
        };
        assert_eq!(category(set), "endpoint_unfit", "{endpoint}");
    }
}

#[test]
fn the_address_of_the_store_holds_endpoint_and_region() {
    let store = validate(&everything()).unwrap().store;
    assert_eq!(
        store.url,
        "s3://proofs/production?endpoint=https%3A%2F%2Fminio.storage.svc%3A9000&region=eu-central-1"
    );
    assert_eq!(validate(&smallest()).unwrap().store.url, "s3://proofs");
}

#[test]
fn images_with_spaces_are_refused() {
    assert_eq!(
        category(|cluster| cluster.spec.backends[0].image = "two words".to_owned()),
        "image_unfit"
    );
    let set = |cluster: &mut ProverCluster| {
        cluster.spec.coordinator = Some(prover_crds::Coordinator {
            image: Some("a\nb".to_owned()),
            ..prover_crds::Coordinator::default()
        });
    };
    assert_eq!(category(set), "image_unfit");
}

#[test]
fn a_group_needs_a_backend_that_exists() {
    assert_eq!(
        category(|cluster| group(cluster).backend = "other".to_owned()),
        "backend_unknown"
    );
}

#[test]
fn commands_belong_to_command_backends() {
    assert_eq!(
        category(|cluster| cluster.spec.backends[0].system = ProofSystem::Command),
        "command_unfit"
    );
    let set = |cluster: &mut ProverCluster| {
        cluster.spec.backends[0].command = Some(CommandBackend::default());
    };
    assert_eq!(category(set), "command_unfit");
}

#[test]
fn a_group_has_one_kind_of_device() {
    let both = Device {
        cpu: Some(CpuDevice::default()),
        gpu: Some(GpuDevice::default()),
    };
    assert_eq!(category(|cluster| group(cluster).device = both), "device_unfit");
    assert_eq!(
        category(|cluster| group(cluster).device = Device::default()),
        "device_unfit"
    );
}

#[test]
fn a_claim_takes_the_place_of_a_resource() {
    let gpu = GpuDevice {
        resource_claim_template_name: Some("one-gpu".to_owned()),
        mig_profile: Some("1g.10gb".to_owned()),
        ..GpuDevice::default()
    };
    assert_eq!(
        category(|cluster| group(cluster).device = Device {
            cpu: None,
            gpu: Some(gpu)
        }),
        "claim_and_resource"
    );
}

#[test]
fn quantities_are_greater_than_zero() {
    let resources = |cpu: &str, memory: &str, disk: &str| {
        Some(Resources {
            cpu: Some(cpu.into()),
            memory: Some(memory.into()),
            ephemeral_storage: Some(disk.into()),
        })
    };
    for (cpu, memory, disk) in [("0", "4Gi", "1Gi"), ("1", "4 GB", "1Gi"), ("1", "4Gi", "0")] {
        assert_eq!(
            category(|cluster| group(cluster).resources = resources(cpu, memory, disk)),
            "quantity_unfit"
        );
    }
    assert_eq!(
        category(|cluster| group(cluster).exchange_size = Some("0".into())),
        "quantity_unfit"
    );
    let cache = prover_crds::Cache {
        size: "0".into(),
        storage_class_name: None,
    };
    assert_eq!(
        category(|cluster| group(cluster).cache = Some(cache)),
        "quantity_unfit"
    );
}

#[test]
fn memory_must_be_told_and_hold_what_lies_in_it() {
    assert_eq!(
        category(|cluster| group(cluster).resources = None),
        "memory_missing"
    );
    assert_eq!(
        category(|cluster| group(cluster).exchange_size = Some("4Gi".into())),
        "memory_too_small"
    );
}

#[test]
fn numbers_of_workers_must_fit() {
    let scaling = |min, max, mode| {
        Some(Scaling {
            min_replicas: min,
            max_replicas: max,
            mode,
            ..Scaling::default()
        })
    };
    let twice = |cluster: &mut ProverCluster| {
        group(cluster).scaling = scaling(None, 1, ScalingMode::Native);
        group(cluster).replicas = Some(2);
    };
    assert_eq!(category(twice), "replicas_and_scaling");
    for (mode, category_of_it) in [
        (ScalingMode::Native, "scaling_bounds_unfit"),
        (ScalingMode::Hpa, "scaling_mode_unavailable"),
        (ScalingMode::Keda, "scaling_mode_unavailable"),
    ] {
        let set = |cluster: &mut ProverCluster| {
            group(cluster).replicas = None;
            group(cluster).scaling = scaling(Some(3), 2, mode);
        };
        assert_eq!(category(set), category_of_it);
    }
}

#[test]
fn labels_by_which_the_operator_finds_its_pods_are_its_own() {
    for key in [
        "proving.rs/cluster",
        "app.kubernetes.io/managed-by",
        "x.proving.rs/y",
    ] {
        let set = |cluster: &mut ProverCluster| {
            group(cluster)
                .pod
                .get_or_insert_default()
                .labels
                .insert(key.to_owned(), "x".to_owned());
        };
        assert_eq!(category(set), "key_reserved", "{key}");
    }
    let annotate = |cluster: &mut ProverCluster| {
        let pod = group(cluster).pod.get_or_insert_default();
        pod.annotations
            .insert("proving.rs/apply".to_owned(), "x".to_owned());
    };
    assert_eq!(category(annotate), "key_reserved");
    let annotate = |cluster: &mut ProverCluster| {
        let pod = group(cluster).pod.get_or_insert_default();
        pod.service_account_annotations
            .insert("proving.rs/applied-hash".to_owned(), "x".to_owned());
    };
    assert_eq!(category(annotate), "key_reserved");
}

#[test]
fn variables_have_one_value_and_a_name_of_their_own() {
    let add = |name: &str, value: Option<&str>| {
        let variable = EnvironmentVariable {
            name: name.to_owned(),
            value: value.map(str::to_owned),
            secret_ref: None,
        };
        move |cluster: &mut ProverCluster| group(cluster).pod.get_or_insert_default().env.push(variable)
    };
    assert_eq!(category(add("PROVER_STORE", Some("x"))), "variable_unfit");
    assert_eq!(category(add("RUST_LOG", None)), "variable_unfit");
}

#[test]
fn a_selector_belongs_to_from_selector() {
    let selector = Some(NamespaceSelector::default());
    for allowed in [
        Allowed {
            from: NamespacesFrom::All,
            selector: selector.clone(),
        },
        Allowed {
            from: NamespacesFrom::Same,
            selector,
        },
        Allowed {
            from: NamespacesFrom::Selector,
            selector: None,
        },
    ] {
        assert_eq!(
            category(|cluster| cluster.spec.allowed_namespaces = Some(allowed)),
            "selector_unfit"
        );
    }
}

#[test]
fn groups_differ_in_name_and_agree_in_currency_and_account() {
    let second = |mutate: fn(&mut WorkerGroup)| {
        move |cluster: &mut ProverCluster| {
            group(cluster).cost = Some(Price {
                per_hour: "1".to_owned(),
                currency: "USD".to_owned(),
            });
            let pod = group(cluster).pod.get_or_insert_default();
            pod.service_account_annotations
                .insert("role".to_owned(), "a".to_owned());
            let mut second = cluster.spec.worker_groups[0].clone();
            second.name = "second".to_owned();
            mutate(&mut second);
            cluster.spec.worker_groups.push(second);
        }
    };
    assert_eq!(
        category(second(|group| group.name = "cpu".to_owned())),
        "group_twice"
    );
    let currency: fn(&mut WorkerGroup) = |group| group.cost.as_mut().unwrap().currency = "EUR".to_owned();
    assert_eq!(category(second(currency)), "currencies_differ");
    let account: fn(&mut WorkerGroup) = |group| {
        let pod = group.pod.as_mut().unwrap();
        pod.service_account_annotations
            .insert("role".to_owned(), "b".to_owned());
    };
    assert_eq!(category(second(account)), "account_annotations_differ");
}

#[test]
fn drains_are_as_long_as_machines_stay() {
    let seconds = |capacity, provider, asked| {
        let mut cluster = smallest();
        group(&mut cluster).capacity_type = capacity;
        group(&mut cluster).provider = provider;
        group(&mut cluster).drain_seconds = asked;
        validate(&cluster).unwrap().groups[0].drain_seconds
    };
    use prover_crds::CapacityType::{OnDemand, Spot};
    assert_eq!(seconds(OnDemand, None, None), 600);
    assert_eq!(seconds(Spot, Some(Provider::Gke), None), 15);
    assert_eq!(seconds(Spot, Some(Provider::Eks), None), 100);
    assert_eq!(seconds(OnDemand, Some(Provider::Eks), None), 600);
    assert_eq!(seconds(Spot, None, Some(7)), 7);
}

#[test]
fn memory_is_divided_without_asking() {
    let memory = validate(&smallest()).unwrap().groups[0].memory;
    assert_eq!(
        memory,
        Memory {
            total: Bytes::gibi(4),
            exchange: Bytes::gibi(1),
            shared_per_device: Bytes(0),
            shared_by_planners: Bytes(0)
        }
    );
    let mut cluster = smallest();
    group(&mut cluster).device = Device {
        cpu: None,
        gpu: Some(GpuDevice {
            count: Some(2),
            ..GpuDevice::default()
        }),
    };
    group(&mut cluster).resources.as_mut().unwrap().memory = Some("64Gi".into());
    assert_eq!(
        validate(&cluster).unwrap().groups[0].memory,
        Memory {
            total: Bytes::gibi(64),
            exchange: Bytes::gibi(8),
            shared_per_device: Bytes::gibi(1),
            shared_by_planners: Bytes(0)
        }
    );
}

#[test]
fn gpus_are_asked_for_by_resource_profile_or_claim() {
    let request = |gpu: GpuDevice| {
        let mut cluster = smallest();
        group(&mut cluster).device = Device {
            cpu: None,
            gpu: Some(gpu),
        };
        match &validate(&cluster).unwrap().groups[0].devices {
            Devices::Gpu { request, .. } => request.clone(),
            Devices::Cpu { .. } => unreachable!("it is a GPU"),
        }
    };
    let resource = |name: &str| GpuRequest::Resource(name.to_owned());
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(request(GpuDevice::default()), resource("nvidia.com/gpu"));
    let named = GpuDevice {
        resource_name: text("nvidia.com/gpu.shared"),
        ..GpuDevice::default()
    };
    assert_eq!(request(named), resource("nvidia.com/gpu.shared"));
    let slice = GpuDevice {
        mig_profile: text("1g.10gb+me"),
        ..GpuDevice::default()
    };
    assert_eq!(request(slice), resource("nvidia.com/mig-1g.10gb.me"));
    let claim = GpuDevice {
        resource_claim_template_name: text("one-gpu"),
        ..GpuDevice::default()
    };
    assert_eq!(request(claim), GpuRequest::ClaimTemplate("one-gpu".to_owned()));
}
