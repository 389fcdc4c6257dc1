//! When an old revision may go.

use prover_wire::operator_plane::WorkerState;
use serde_json::json;

use super::*;

fn deployment(group: &str, revision: &str, replicas: i32) -> Arc<Deployment> {
    let deployment = json!({
        "metadata": { "name": format!("main-{group}-{revision}"), "namespace": "proving", "labels": {
            names::COMPONENT_LABEL: names::WORKER, names::GROUP_LABEL: group, names::REVISION_LABEL: revision,
        } },
        "spec": { "replicas": replicas, "selector": {}, "template": {} },
    });
    Arc::new(serde_json::from_value(deployment).unwrap())
}

fn pod(name: &str, group: &str, revision: &str) -> Arc<Pod> {
    let pod = json!({ "metadata": { "name": name, "labels": {
        names::COMPONENT_LABEL: names::WORKER, names::GROUP_LABEL: group, names::REVISION_LABEL: revision,
    } } });
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn worker(pod: &str, version: &str) -> WorkerState {
    WorkerState {
        pod: pod.to_owned(),
        backend_version: version.to_owned(),
        connected: true,
        ..WorkerState::default()
    }
}

fn state(pinned: &[&str], workers: Vec<WorkerState>) -> ClusterState {
    ClusterState {
        pinned_backend_versions: pinned.iter().map(|version| (*version).to_owned()).collect(),
        workers,
        ..ClusterState::default()
    }
}

/// What becomes of revision `old` of group `gpu`, whose current one is `new`.
fn retirement(replicas: i32, pods: &[Arc<Pod>], state: Option<&ClusterState>) -> Option<Retirement> {
    let deployments = [deployment("gpu", "old", replicas), deployment("gpu", "new", 1)];
    let current = BTreeMap::from([("gpu".to_owned(), "main-gpu-new".to_owned())]);
    let revisions = revisions(&deployments, pods, state, &current);
    assert!(
        revisions
            .iter()
            .any(|revision| revision.is_current() && revision.revision == "new")
    );
    revisions
        .into_iter()
        .find(|revision| revision.revision == "old")
        .unwrap()
        .retirement
}

#[test]
fn workers_stay_while_a_job_needs_a_version_that_only_they_have() {
    let pods = [pod("a", "gpu", "old"), pod("b", "gpu", "new")];
    let pinned = state(&["v1"], vec![worker("a", "v1"), worker("b", "v2")]);
    assert_eq!(
        retirement(1, &pods, Some(&pinned)),
        Some(Retirement::Pinned {
            version: "v1".to_owned()
        })
    );
}

#[test]
fn workers_leave_once_no_job_needs_their_version_or_new_ones_have_it() {
    let pods = [pod("a", "gpu", "old"), pod("b", "gpu", "new")];
    let unpinned = state(&["v2"], vec![worker("a", "v1"), worker("b", "v2")]);
    assert_eq!(retirement(1, &pods, Some(&unpinned)), Some(Retirement::Leave));
    let same = state(&["v1"], vec![worker("a", "v1"), worker("b", "v1")]);
    assert_eq!(retirement(1, &pods, Some(&same)), Some(Retirement::Leave));
}

#[test]
fn nothing_leaves_while_nobody_can_tell() {
    assert_eq!(
        retirement(1, &[pod("a", "gpu", "old")], None),
        Some(Retirement::Unknown)
    );
}

#[test]
fn only_what_has_neither_replicas_nor_pods_is_deleted() {
    let unpinned = state(&[], Vec::new());
    assert_eq!(
        retirement(0, &[pod("a", "gpu", "old")], Some(&unpinned)),
        Some(Retirement::Leave)
    );
    assert_eq!(
        retirement(0, &[pod("b", "gpu", "new")], None),
        Some(Retirement::Delete)
    );
}

#[test]
fn workers_of_a_group_that_is_gone_leave_as_those_of_an_old_revision() {
    let deployments = [deployment("gone", "x", 2)];
    let pods = [pod("a", "gone", "x")];
    let state = state(&[], vec![worker("a", "v1")]);
    let revisions = revisions(&deployments, &pods, Some(&state), &BTreeMap::new());
    assert_eq!(
        (revisions[0].group.as_str(), &revisions[0].retirement),
        ("gone", &Some(Retirement::Leave))
    );
}

#[test]
fn a_revision_without_workers_stays_while_a_job_needs_what_they_told() {
    let mut old = deployment("gpu", "old", 0).as_ref().clone();
    old.annotations_mut()
        .insert(BACKEND_VERSION_ANNOTATION.to_owned(), "v1".to_owned());
    let deployments = [Arc::new(old), deployment("gpu", "new", 0)];
    let current = BTreeMap::from([("gpu".to_owned(), "main-gpu-new".to_owned())]);
    let becomes = |state: Option<&ClusterState>| {
        let revisions = revisions(&deployments, &[], state, &current);
        revisions
            .into_iter()
            .find(|revision| revision.revision == "old")
            .unwrap()
            .retirement
            .unwrap()
    };
    let pinned = state(&["v1"], Vec::new());
    assert_eq!(
        becomes(Some(&pinned)),
        Retirement::Pinned {
            version: "v1".to_owned()
        }
    );
    assert_eq!(becomes(Some(&state(&[], Vec::new()))), Retirement::Delete);
    assert_eq!(becomes(None), Retirement::Unknown);
    assert_eq!(told_versions(&deployments, &[], None)["main-gpu-old"], "v1");
}
