//! What a replica says of itself at its own pod: whether it leads, and why it can't begin.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use prover_crds::names;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Longest time that a write may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Between two tries.
const RETRY: Duration = Duration::from_secs(1);
/// Annotation by which a Deployment that gets new pods lets its leader go last, so that the lead changes once.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const LEADERS_COST: &str = "1000";

/// What is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    leads: bool,
    /// Why the artifact store can't be used: a reason, a colon, and the words for people.
    store_trouble: Option<String>,
}

/// Says it, and says it again until the API server has it.
#[derive(Clone, Debug)]
pub(crate) struct OwnPod {
    said: watch::Sender<Said>,
}

impl OwnPod {
    /// Begins to say things about this pod until it is stopped: that it does not lead, first of all.
    pub(crate) fn start(
        client: &Client,
        namespace: &str,
        pod: &str,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> OwnPod {
        let (said, mut wanted) = watch::channel(Said::default());
        let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let pod = pod.to_owned();
        tokio::spawn(async move {
            let saying = async {
                loop {
                    let now = wanted.borrow_and_update().clone();
                    while !say(&api, &pod, &now, &metrics).await && !wanted.has_changed().unwrap_or(true) {
                        tokio::time::sleep(RETRY).await;
                    }
                    if wanted.changed().await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = saying => {}
            }
        });
        OwnPod { said }
    }

    /// Whether this replica leads.
    pub(crate) fn set_leads(&self, leads: bool) {
        self.said
            .send_if_modified(|said| std::mem::replace(&mut said.leads, leads) != leads);
    }

    /// Why the artifact store can't be used; none where it can.
    pub(crate) fn set_store_trouble(&self, trouble: Option<String>) {
        self.said.send_if_modified(|said| {
            let changed = said.store_trouble != trouble;
            said.store_trouble = trouble;
            changed
        });
    }
}

/// Whether the API server has it, or never will.
async fn say(api: &Api<Pod>, pod: &str, said: &Said, metrics: &Metrics) -> bool {
    let role = if said.leads {
        names::LEADER
    } else {
        names::FOLLOWER
    };
    let cost = said.leads.then_some(LEADERS_COST);
    let annotations = json!({ DELETION_COST: cost, names::STORE_TROUBLE_ANNOTATION: said.store_trouble });
    let patch = json!({ "metadata": { "labels": { names::ROLE_LABEL: role }, "annotations": annotations } });
    write(api, pod, &patch, metrics).await
}

/// Takes the role off the pod of a leader that was overtaken: it may be stopped and could not do so itself.
pub(crate) async fn demote(client: Client, namespace: &str, pod: &str, metrics: Metrics) {
    let api: Api<Pod> = Api::namespaced(client, namespace);
    let patch = json!({ "metadata": {
        "labels": { names::ROLE_LABEL: names::FOLLOWER }, "annotations": { DELETION_COST: null },
    } });
    write(&api, pod, &patch, &metrics).await;
}

async fn write(api: &Api<Pod>, pod: &str, patch: &serde_json::Value, metrics: &Metrics) -> bool {
    // Not by server-side apply, which would make a pod that went meanwhile.
    let parameters = PatchParams {
        field_manager: Some(names::COORDINATOR_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patch = Patch::Merge(patch);
    let error = match tokio::time::timeout(LIMIT, api.patch_metadata(pod, &parameters, &patch)).await {
        Ok(Ok(_)) => return true,
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => return true,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {LIMIT:?}"),
    };
    metrics.pod_write_errors.inc();
    tracing::warn!(pod, error, "what a pod is could not be written at it");
    false
}
