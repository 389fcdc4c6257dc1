//! What a watch proves, and what it does not.

use std::sync::Mutex;
use std::time::Duration;

use futures::{FutureExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{Error, Event};
use serde_json::{Value, json};

use super::{ContainerEnd, PodDirectory, PodNews, PodProblem, PodSink, follow};

#[derive(Default)]
struct Heard(Mutex<Vec<PodNews>>);

#[async_trait::async_trait]
impl PodSink for Heard {
    async fn tell(&self, news: PodNews) {
        self.0.lock().unwrap().push(news);
    }
}

fn mk_pod(name: &str, uid: &str, status: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "uid": uid},
        "status": status,
    }))
    .unwrap()
}

fn running(name: &str, uid: &str) -> Pod {
    mk_pod(name, uid, &json!({"phase": "Running", "podIP": "10.0.0.1"}))
}

async fn told(directory: &PodDirectory, events: Vec<Result<Event<Pod>, Error>>) -> Vec<PodNews> {
    let heard = Heard::default();
    follow(stream::iter(events), directory, &heard).await;
    heard.0.into_inner().unwrap()
}

fn gone(name: &str, uid: &str, why: &str) -> PodNews {
    PodNews::Gone {
        name: name.to_owned(),
        uid: uid.to_owned(),
        why: why.to_owned(),
    }
}

#[tokio::test]
async fn a_deleted_pod_is_gone_and_is_told_once() {
    let directory = PodDirectory::default();
    let pod = running("a", "1");
    let news = told(
        &directory,
        vec![
            Ok(Event::Init),
            Ok(Event::InitApply(pod.clone())),
            Ok(Event::InitDone),
            Ok(Event::Delete(pod.clone())),
            Ok(Event::Delete(pod)),
        ],
    )
    .await;
    assert_eq!(news, [gone("a", "1", "the pod was deleted")]);
}

#[tokio::test]
async fn what_a_list_after_a_broken_watch_does_not_tell_is_gone() {
    let directory = PodDirectory::default();
    let news = told(
        &directory,
        vec![
            Ok(Event::Init),
            Ok(Event::InitApply(running("a", "1"))),
            Ok(Event::InitApply(running("b", "2"))),
            Ok(Event::InitApply(running("c", "3"))),
            Ok(Event::InitDone),
            Err(Error::NoResourceVersion),
            Ok(Event::Init),
            Ok(Event::InitApply(running("a", "1"))),
            Ok(Event::InitApply(running("c", "4"))),
        ],
    )
    .await;
    // Before the list has ended, only what it contradicts is known.
    assert_eq!(news, [gone("c", "3", "another pod took its name")]);
    let news = told(&directory, vec![Ok(Event::InitDone)]).await;
    assert_eq!(news, [gone("b", "2", "the pod does not exist any more")]);
}

#[tokio::test]
async fn a_pod_that_has_ended_is_gone_with_the_reason_of_its_disruption() {
    let directory = PodDirectory::default();
    let evicted = json!({
        "phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory.",
        "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet",
                        "message": "The node was low on memory."}]
    });
    let news = told(
        &directory,
        vec![
            Ok(Event::Apply(running("a", "1"))),
            Ok(Event::Apply(mk_pod("a", "1", &evicted))),
            Ok(Event::Apply(mk_pod("a", "1", &evicted))),
            Ok(Event::Delete(mk_pod("a", "1", &evicted))),
        ],
    )
    .await;
    let why = "the pod is in phase Failed: TerminationByKubelet: The node was low on memory.";
    assert_eq!(news, [gone("a", "1", why)]);
}

#[tokio::test]
async fn a_silent_node_or_a_pod_that_drains_proves_nothing() {
    let directory = PodDirectory::default();
    let unready = json!({
        "phase": "Running", "podIP": "10.0.0.1",
        "conditions": [{"type": "Ready", "status": "False", "reason": "NodeNotReady"},
                       {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}]
    });
    let mut draining = mk_pod("a", "1", &unready);
    draining.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    let unknown = mk_pod("a", "1", &json!({"phase": "Unknown", "podIP": "10.0.0.1"}));
    let news = told(
        &directory,
        vec![
            Ok(Event::Apply(running("a", "1"))),
            Ok(Event::Apply(mk_pod("a", "1", &unready))),
            Ok(Event::Apply(draining)),
            Ok(Event::Apply(unknown)),
        ],
    )
    .await;
    assert_eq!(news, []);
    let address = Some("10.0.0.1".parse().unwrap());
    assert_eq!(directory.admit("a", "1", address, Duration::ZERO).await, Ok(()));
}

#[tokio::test]
async fn each_end_of_a_container_is_told_once() {
    let directory = PodDirectory::default();
    let terminated = |id: &str, reason: &str, code: i32| json!({"terminated": {"containerID": id, "reason": reason, "exitCode": code}});
    let status = |name: &str, state: Value, last: Value| {
        json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 1,
               "state": state, "lastState": last})
    };
    let running = json!({"running": {}});
    let pod = |statuses: Vec<Value>| {
        mk_pod(
            "a",
            "1",
            &json!({"phase": "Running", "containerStatuses": statuses}),
        )
    };
    let killed = terminated("x1", "OOMKilled", 137);
    let news = told(
        &directory,
        vec![
            Ok(Event::Apply(pod(vec![status(
                "backend-cpu-0",
                killed.clone(),
                json!({}),
            )]))),
            // Started again: the same end stands in its last state.
            Ok(Event::Apply(pod(vec![status(
                "backend-cpu-0",
                running.clone(),
                killed,
            )]))),
            Ok(Event::Apply(pod(vec![
                status("backend-cpu-0", running.clone(), terminated("x2", "Error", 1)),
                status("agent", running, terminated("y1", "Error", 101)),
            ]))),
        ],
    )
    .await;
    let end = |id: &str, reason: &str, exit_code| ContainerEnd {
        container_id: id.to_owned(),
        reason: reason.to_owned(),
        exit_code,
        signal: 0,
    };
    let backend = |end| PodNews::ContainerEnded {
        uid: "1".to_owned(),
        container: "backend-cpu-0".to_owned(),
        end,
    };
    let agent = PodNews::AgentEnded {
        name: "a".to_owned(),
        uid: "1".to_owned(),
        end: end("y1", "Error", 101),
    };
    assert_eq!(
        news,
        [
            backend(end("x1", "OOMKilled", 137)),
            backend(end("x2", "Error", 1)),
            agent
        ]
    );
}

#[tokio::test]
async fn nothing_is_known_before_the_first_list_has_ended() {
    let directory = PodDirectory::default();
    let admit = || directory.admit("a", "1", None, Duration::ZERO);
    assert_eq!(admit().await, Err(PodProblem::NotSynced));
    told(&directory, vec![Ok(Event::Init), Ok(Event::InitDone)]).await;
    assert_eq!(admit().await, Err(PodProblem::Unknown));
}

#[tokio::test]
async fn the_names_of_live_pods_are_told_once_a_whole_list_has_come() {
    let directory = PodDirectory::default();
    let waiting = tokio::spawn({
        let directory = directory.clone();
        async move { directory.names().await }
    });
    let ended = mk_pod("ended", "2", &json!({"phase": "Failed"}));
    let events = vec![
        Ok(Event::Init),
        Ok(Event::InitApply(running("a", "1"))),
        Ok(Event::InitApply(ended)),
    ];
    told(&directory, events).await;
    assert!(
        directory.names().now_or_never().is_none(),
        "the list has not ended"
    );
    told(&directory, vec![Ok(Event::InitDone)]).await;
    assert_eq!(waiting.await.unwrap(), ["a".into()].into());
    told(&directory, vec![Ok(Event::Apply(running("b", "3")))]).await;
    assert_eq!(directory.names().await, ["a".into(), "b".into()].into());
}
