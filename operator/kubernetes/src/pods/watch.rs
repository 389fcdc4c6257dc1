//! The watch over the worker pods of a cluster.

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use prover_coordinator::WorkerControl;
use prover_crds::names::{CLUSTER_LABEL, COMPONENT_LABEL, WORKER};
use tokio_util::sync::CancellationToken;

use super::directory::PodDirectory;
use super::state::PodNews;

/// Takes what is new about pods.
#[async_trait::async_trait]
pub trait PodSink: Send + Sync {
    /// Takes one piece of news.
    async fn tell(&self, news: PodNews);
}

#[async_trait::async_trait]
impl PodSink for WorkerControl {
    async fn tell(&self, news: PodNews) {
        match news {
            PodNews::Gone { name, uid, why } => {
                tracing::info!(pod = %name, uid, why, "a worker pod is gone");
                self.pod_gone(&name, &uid).await;
            }
            PodNews::AgentEnded { name, uid, end } => {
                tracing::warn!(pod = %name, uid, reason = end.reason, exit_code = end.exit_code, "an agent ended");
                self.agent_ended(&name, &uid).await;
            }
            PodNews::ContainerEnded { uid, container, end } => {
                tracing::warn!(
                    uid,
                    container,
                    reason = end.reason,
                    exit_code = end.exit_code,
                    "a backend's container ended"
                );
                self.container_ended(&uid, &container, &end.reason, end.exit_code)
                    .await;
            }
        }
    }
}

/// Watches the worker pods of a cluster until it is stopped. A watch that breaks begins anew with a list, and what
/// the list does not tell is gone.
pub async fn run(
    client: Client,
    namespace: &str,
    cluster: &str,
    directory: PodDirectory,
    control: WorkerControl,
    stop: CancellationToken,
) {
    let selector = format!("{CLUSTER_LABEL}={cluster},{COMPONENT_LABEL}={WORKER}");
    let config = watcher::Config::default().labels(&selector);
    let events = watcher(Api::<Pod>::namespaced(client, namespace), config).default_backoff();
    tokio::select! {
        () = stop.cancelled() => {}
        () = follow(events, &directory, &control) => {}
    }
}

/// Follows a watch to its end.
pub async fn follow(
    events: impl Stream<Item = Result<watcher::Event<Pod>, watcher::Error>>,
    directory: &PodDirectory,
    sink: &impl PodSink,
) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        let news = match event {
            Ok(watcher::Event::Init) => {
                directory.begin_list();
                Vec::new()
            }
            Ok(watcher::Event::InitApply(pod) | watcher::Event::Apply(pod)) => directory.apply(&pod),
            Ok(watcher::Event::InitDone) => directory.end_list(),
            Ok(watcher::Event::Delete(pod)) => directory.delete(&pod),
            Err(error) => {
                tracing::warn!(%error, "the watch over worker pods broke and begins anew");
                Vec::new()
            }
        };
        for news in news {
            sink.tell(news).await;
        }
    }
}
