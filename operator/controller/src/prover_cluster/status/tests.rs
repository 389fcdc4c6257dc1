//! What a ProverCluster tells of itself.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use prover_crds::names;
use prover_wire::operator_plane::{ClassWork, ClusterState, GroupProofs, WorkerState};
use serde_json::{Value, json};

use super::*;
use crate::prover_cluster::dereference::Namespaces;
use crate::prover_cluster::fixtures::smallest;

fn found() -> Dereferenced {
    Dereferenced {
        key: ClusterKey {
            namespace: "proving".to_owned(),
            name: "main".to_owned(),
        },
        namespaces: Namespaces {
            allowed: vec!["proving".to_owned()],
            ..Namespaces::default()
        },
        deployments: vec![coordinator(1), workers(2)],
        pods: vec![leader()],
        present: BTreeMap::new(),
        state: Some(Arc::new(state(2))),
        namespace_goes: false,
    }
}

fn coordinator(available: i32) -> Arc<Deployment> {
    let deployment = json!({
        "metadata": { "name": "main-coordinator", "labels": { names::COMPONENT_LABEL: names::COORDINATOR } },
        "spec": { "selector": {}, "template": {} },
        "status": { "availableReplicas": available, "readyReplicas": available },
    });
    Arc::new(serde_json::from_value(deployment).unwrap())
}

fn workers(replicas: i32) -> Arc<Deployment> {
    let deployment = json!({
        "metadata": { "name": "main-cpu-1", "labels": {
            names::COMPONENT_LABEL: names::WORKER, names::GROUP_LABEL: "cpu", names::REVISION_LABEL: "1",
        } },
        "spec": { "replicas": replicas, "selector": {}, "template": {} },
    });
    Arc::new(serde_json::from_value(deployment).unwrap())
}

fn pod(component: &str, status: &Value) -> Arc<Pod> {
    let pod = json!({
        "metadata": { "name": format!("main-{component}-x"), "labels": {
            names::COMPONENT_LABEL: component, names::GROUP_LABEL: "cpu", names::REVISION_LABEL: "1",
        } },
        "status": status,
    });
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn leader() -> Arc<Pod> {
    let mut pod = pod(names::COORDINATOR, &json!({})).as_ref().clone();
    pod.labels_mut()
        .insert(names::ROLE_LABEL.to_owned(), names::LEADER.to_owned());
    Arc::new(pod)
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({ "containerStatuses": [{
        "name": "backend-cpu-0", "image": "localhost/wrong:1", "imageID": "", "ready": false, "restartCount": 4,
        "state": { "waiting": { "reason": reason, "message": message } },
        "lastState": { "terminated": { "exitCode": 3, "reason": "Error", "message": "no such bucket\n" } },
    }] })
}

fn state(connected: usize) -> ClusterState {
    let worker = |index: usize| WorkerState {
        pod: format!("main-cpu-1-{index}"),
        group: "cpu".to_owned(),
        connected: true,
        devices: 1,
        attempts: u32::from(index == 0),
        ..WorkerState::default()
    };
    ClusterState {
        epoch: 3,
        waiting_jobs: 4,
        running_jobs: 1,
        workers: (0..connected).map(worker).collect(),
        classes: vec![ClassWork {
            device_class: "cpu".to_owned(),
            waiting_device_seconds: 1.2,
            ..ClassWork::default()
        }],
        ..ClusterState::default()
    }
}

fn status_at(
    cluster: &ProverCluster,
    found: &Dereferenced,
    findings: &Findings,
    second: u64,
) -> ProverClusterStatus {
    compute(cluster, found, findings, None, moment(second * 1_000))
}

fn status(found: &Dereferenced) -> ProverClusterStatus {
    let findings = Findings {
        current: [("cpu".to_owned(), "main-cpu-1".to_owned())].into(),
        ..Findings::default()
    };
    status_at(&smallest(), found, &findings, 100)
}

fn condition<'a>(status: &'a ProverClusterStatus, type_: &str) -> (&'a str, &'a str, &'a str) {
    let condition = words::find(&status.conditions, type_).unwrap_or_else(|| panic!("no condition {type_}"));
    (&condition.status, &condition.reason, &condition.message)
}

#[test]
fn a_cluster_whose_coordinator_and_workers_are_there_is_ready() {
    let status = status(&found());
    for type_ in [
        words::READY,
        words::COORDINATOR_READY,
        words::STORE_READY,
        words::WORKERS_READY,
    ] {
        assert_eq!(condition(&status, type_).0, "True", "{type_}");
    }
    assert_eq!(status.observed_generation, Some(1));
    let counts = status.workers.unwrap();
    assert_eq!(
        (counts.desired, counts.connected, counts.busy, counts.leaving),
        (2, 2, 1, 0)
    );
    assert_eq!(status.groups[0].deployment.as_deref(), Some("main-cpu-1"));
    assert_eq!(status.groups[0].usable_devices, 2);
    let queue = status.queue.unwrap();
    assert_eq!(
        (
            queue.waiting_jobs,
            queue.running_jobs,
            queue.work[0].waiting_device_seconds
        ),
        (4, 1, 2)
    );
    assert!(words::find(&status.conditions, words::DRAINING).is_none());
}

#[test]
fn nothing_changes_when_nothing_changed() {
    let mut cluster = smallest();
    let findings = Findings::default();
    cluster.status = Some(status_at(&cluster, &found(), &findings, 100));
    let again = status_at(&cluster, &found(), &findings, 5_000);
    assert_eq!(cluster.status, Some(again.clone()));
    assert_eq!(plan(&again, &again, true), Plan::Keep);
    assert!(events(&again, &again).is_empty());
}

#[test]
fn figures_alone_wait_their_turn_and_conditions_do_not() {
    let old = status(&found());
    let mut figures = old.clone();
    figures.queue.as_mut().unwrap().waiting_jobs = 5;
    assert_eq!(plan(&old, &figures, false), Plan::Later);
    assert_eq!(plan(&old, &figures, true), Plan::Write);
    let broken = Dereferenced {
        deployments: vec![coordinator(0), workers(2)],
        ..found()
    };
    assert_eq!(plan(&old, &status(&broken), false), Plan::Write);
}

/// The status of a cluster whose only group has no replicas and is scaled from so many workers on.
fn status_without_workers(fewest: i32, waiting_jobs: u64) -> ProverClusterStatus {
    let mut cluster = smallest();
    let group = &mut cluster.spec.worker_groups[0];
    group.replicas = None;
    let scaling = json!({ "minReplicas": fewest, "maxReplicas": 4 });
    group.scaling = Some(serde_json::from_value(scaling).unwrap());
    let found = Dereferenced {
        deployments: vec![coordinator(1), workers(0)],
        state: Some(Arc::new(ClusterState {
            waiting_jobs,
            ..state(0)
        })),
        ..found()
    };
    status_at(&cluster, &found, &Findings::default(), 100)
}

#[test]
fn a_group_tells_which_proofs_its_workers_make_and_what_they_miss_for_others() {
    let withheld = prover_wire::operator_plane::WithheldProof {
        system: "sp1".to_owned(),
        kind: "Groth16".to_owned(),
        reason: reasons::CIRCUITS_MISSING.to_owned(),
        message: "there are no circuits at /circuits".to_owned(),
        workers: 2,
    };
    let proofs = |group: &str| GroupProofs {
        group: group.to_owned(),
        offered: vec!["sp1/Compressed".to_owned(), "sp1/Core".to_owned()],
        withheld: vec![withheld.clone()],
    };
    let state = ClusterState {
        proofs: vec![proofs("cpu")],
        ..state(2)
    };
    let status = status(&Dereferenced {
        state: Some(Arc::new(state)),
        ..found()
    });
    let group = &status.groups[0];
    assert_eq!(group.proofs, ["sp1/Compressed", "sp1/Core"]);
    let told = &group.withheld_proofs[0];
    assert_eq!((told.kind.as_str(), told.workers), ("Groth16", 2));
    assert_eq!(told.reason, reasons::CIRCUITS_MISSING);
}

#[test]
fn no_workers_are_as_wanted_while_nothing_is_to_be_proved() {
    let idle = status_without_workers(0, 0);
    assert_eq!(condition(&idle, words::READY).0, "True");
    assert_eq!(condition(&idle, words::WORKERS_READY).0, "True");
    let busy = status_without_workers(0, 4);
    assert_eq!(condition(&busy, words::READY).1, reasons::WORKERS_MISSING);
}

#[test]
fn workers_are_missing_before_the_replicas_reach_what_the_group_shall_have_at_least() {
    let early = status_without_workers(1, 0);
    for type_ in [words::WORKERS_READY, words::READY] {
        let (holds, reason, message) = condition(&early, type_);
        assert_eq!((holds, reason), ("False", reasons::WORKERS_MISSING), "{type_}");
        assert!(
            message.contains("worker group cpu") && message.contains("at least 1"),
            "{message}"
        );
    }
    let fixed = status(&Dereferenced {
        deployments: vec![coordinator(1), workers(0)],
        state: Some(Arc::new(state(0))),
        ..found()
    });
    assert!(condition(&fixed, words::WORKERS_READY).2.contains("at least 2"));
}

#[test]
fn a_wrong_image_is_told_with_its_name() {
    let pods = vec![
        leader(),
        pod(names::WORKER, &waiting("ImagePullBackOff", "not found")),
    ];
    let found = Dereferenced {
        pods,
        state: Some(Arc::new(state(0))),
        ..found()
    };
    let status = status(&found);
    assert_eq!(condition(&status, words::READY).1, reasons::IMAGE_PULL_FAILED);
    assert!(
        condition(&status, words::WORKERS_READY)
            .2
            .contains("localhost/wrong:1"),
        "{status:?}"
    );
    assert_eq!(
        status.groups[0].reason.as_deref(),
        Some(reasons::IMAGE_PULL_FAILED)
    );
    let told = events(&ProverClusterStatus::default(), &status);
    assert!(
        told.iter().any(
            |(_, reason, note)| reason == reasons::IMAGE_PULL_FAILED && note.contains("worker group cpu")
        )
    );
}

#[test]
fn a_coordinator_that_ends_again_and_again_is_quoted() {
    let pods = vec![pod(names::COORDINATOR, &waiting("CrashLoopBackOff", "back-off"))];
    let found = Dereferenced {
        deployments: vec![coordinator(0)],
        pods,
        state: None,
        ..found()
    };
    let status = status(&found);
    let (holds, reason, message) = condition(&status, words::COORDINATOR_READY);
    assert_eq!((holds, reason), ("False", reasons::CONTAINER_CRASHING));
    assert!(
        message.contains("exit code 3") && message.contains("no such bucket"),
        "{message}"
    );
    assert_eq!(condition(&status, words::STORE_READY).0, "Unknown");
    assert_eq!(condition(&status, words::READY).1, reasons::CONTAINER_CRASHING);
}

#[test]
fn a_store_that_the_coordinator_cannot_use_any_more_is_told_in_its_words() {
    let told = |reason: &str| {
        let state = ClusterState {
            store_ready: Some(false),
            store_reason: reason.to_owned(),
            store_message: "the store refuses access".to_owned(),
            ..state(2)
        };
        status(&Dereferenced {
            state: Some(Arc::new(state)),
            ..found()
        })
    };
    let denied = told(reasons::STORE_ACCESS_DENIED);
    let expected = ("False", reasons::STORE_ACCESS_DENIED, "the store refuses access");
    assert_eq!(condition(&denied, words::STORE_READY), expected);
    assert_eq!(condition(&denied, words::READY), expected);
    assert_eq!(
        condition(&told("WordOfALaterVersion"), words::STORE_READY).1,
        reasons::STORE_FAILED
    );
}

#[test]
fn who_leads_and_who_could_take_over_is_told() {
    let alone = status(&found());
    let (_, reason, message) = condition(&alone, words::COORDINATOR_READY);
    assert_eq!(reason, reasons::COORDINATOR_AVAILABLE);
    assert!(
        message.contains("main-coordinator-x leads; no other"),
        "{message}"
    );
    let told = alone.coordinator.unwrap();
    assert_eq!(
        (told.leader.as_deref(), told.epoch),
        (Some("main-coordinator-x"), 3)
    );
    let two = status(&Dereferenced {
        deployments: vec![coordinator(2), workers(2)],
        ..found()
    });
    assert!(
        condition(&two, words::COORDINATOR_READY)
            .2
            .contains("1 more could take over")
    );
    let between = status(&Dereferenced {
        deployments: vec![coordinator(2), workers(2)],
        pods: Vec::new(),
        ..found()
    });
    assert_eq!(
        (
            condition(&between, words::COORDINATOR_READY).0,
            condition(&between, words::COORDINATOR_READY).1
        ),
        ("False", reasons::NO_LEADER)
    );
}

#[test]
fn a_store_that_is_away_when_coordinators_begin_is_told_by_their_pods() {
    let told = |trouble: &str| {
        let mut pod = pod(names::COORDINATOR, &json!({})).as_ref().clone();
        pod.annotations_mut()
            .insert(names::STORE_TROUBLE_ANNOTATION.to_owned(), trouble.to_owned());
        status(&Dereferenced {
            deployments: vec![coordinator(0), workers(2)],
            pods: vec![Arc::new(pod)],
            state: None,
            ..found()
        })
    };
    let away = told("StoreUnreachable: no connection: refused");
    let expected = ("False", reasons::STORE_UNREACHABLE, "no connection: refused");
    assert_eq!(condition(&away, words::STORE_READY), expected);
    let unfit = told("ConditionalWritesUnsupported: it overwrites");
    assert_eq!(
        condition(&unfit, words::STORE_READY).1,
        reasons::CONDITIONAL_WRITES_UNSUPPORTED
    );
    assert_eq!(
        condition(&told("Odd: word"), words::STORE_READY).1,
        reasons::STORE_FAILED
    );
    assert_eq!(condition(&told("nonsense"), words::STORE_READY).0, "Unknown");
}

#[test]
fn the_scheduler_and_the_quota_are_quoted() {
    let unscheduled = json!({ "conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu",
    }] });
    let missing = || Some(Arc::new(state(1)));
    let found = Dereferenced {
        pods: vec![leader(), pod(names::WORKER, &unscheduled)],
        state: missing(),
        ..found()
    };
    let told = status(&found);
    assert_eq!(
        condition(&told, words::WORKERS_READY).1,
        reasons::GROUP_UNSCHEDULABLE
    );
    assert!(
        condition(&told, words::WORKERS_READY)
            .2
            .contains("Insufficient nvidia.com/gpu")
    );
    // One worker is enough to prove.
    assert_eq!(condition(&told, words::READY).0, "True");

    let mut refused = workers(2).as_ref().clone();
    refused.status = serde_json::from_value(json!({ "conditions": [{
        "type": "ReplicaFailure", "status": "True", "message": "exceeded quota: gpus",
    }] }))
    .unwrap();
    let found = Dereferenced {
        deployments: vec![coordinator(1), Arc::new(refused)],
        pods: vec![leader()],
        state: missing(),
        ..found
    };
    let told = status(&found);
    assert_eq!(told.groups[0].reason.as_deref(), Some(reasons::PODS_REFUSED));
    assert!(
        told.groups[0]
            .message
            .as_deref()
            .unwrap()
            .contains("exceeded quota")
    );
}

#[test]
fn an_invalid_specification_is_told_and_leaves_the_deployments_named() {
    let mut cluster = smallest();
    cluster.status = Some(status(&found()));
    let invalid = ValidationError::MemoryMissing {
        group: "cpu".to_owned(),
    };
    let findings = Findings {
        invalid: Some(invalid),
        ..Findings::default()
    };
    let status = status_at(&cluster, &found(), &findings, 200);
    assert_eq!(condition(&status, words::READY).1, reasons::INVALID_SPEC);
    assert!(condition(&status, words::READY).2.contains("resources.memory"));
    assert_eq!(status.groups[0].deployment.as_deref(), Some("main-cpu-1"));
}

#[test]
fn exceptions_have_conditions_only_while_they_last() {
    let mut cluster = smallest();
    let mut found = found();
    found.namespaces.left_out = 7;
    let findings = Findings {
        strategy: ApplyStrategy::DryRun,
        differences: vec!["create Service proving/main-coordinator".to_owned()],
        ..Findings::default()
    };
    let departure = Some(Departure::Drain {
        jobs: 2,
        forced: false,
    });
    let status = compute(&cluster, &found, &findings, departure, moment(1_000));
    assert_eq!(
        condition(&status, words::NAMESPACES_SERVED).1,
        reasons::TOO_MANY_NAMESPACES
    );
    assert!(condition(&status, words::APPLYING).2.contains("create Service"));
    assert_eq!(condition(&status, words::DRAINING).1, reasons::UNFINISHED_JOBS);
    assert!(
        condition(&status, words::DRAINING)
            .2
            .contains(names::FORCE_DELETE_ANNOTATION)
    );
    cluster.status = Some(status);
    found.namespaces.left_out = 0;
    let after = status_at(&cluster, &found, &Findings::default(), 2);
    for type_ in [words::NAMESPACES_SERVED, words::APPLYING, words::DRAINING] {
        assert!(words::find(&after.conditions, type_).is_none(), "{type_}");
    }
}
