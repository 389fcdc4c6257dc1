//! Looking at what runs: metrics of pods through the API server, and changes of objects as a watch tells them.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, WatchEvent, WatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Resource, ResourceExt};
use prover_crds::names;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::Failure;
use crate::scene::Scene;

/// Objects that wait to be looked at.
const SIGHTS: usize = 1_024;

/// The sum of a metric of a pod over its series, 0 where it has none yet.
pub(crate) async fn metric(scene: &Scene, pod: &str, name: &str) -> Result<f64, Failure> {
    let path = format!(
        "/api/v1/namespaces/{}/pods/{pod}:{}/proxy/metrics",
        scene.namespace,
        names::METRICS_PORT
    );
    let request = http::Request::get(path).body(Vec::new())?;
    Ok(sum_of(&scene.client.request_text(request).await?, name))
}

fn sum_of(text: &str, name: &str) -> f64 {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let whole_name = rest.starts_with('{') || rest.starts_with(' ');
        rest.rsplit(' ')
            .next()
            .filter(|_| whole_name)?
            .parse::<f64>()
            .ok()
    };
    text.lines().filter_map(value).sum()
}

/// An object as a watch told it.
pub(crate) struct Sight<K> {
    /// When it arrived here.
    pub(crate) at: Instant,
    pub(crate) object: K,
}

/// Changes of the objects of a kind in the scene, from now on.
pub(crate) struct Watch<K>(mpsc::Receiver<Result<Sight<K>, String>>);

impl<K> Watch<K>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Default,
{
    pub(crate) async fn begin(scene: &Scene) -> Result<Self, Failure> {
        let api: Api<K> = scene.api();
        let list = api.list_metadata(&kube::api::ListParams::default()).await?;
        let mut version = list.metadata.resource_version.unwrap_or_default();
        let (sender, receiver) = mpsc::channel(SIGHTS);
        tokio::spawn(async move {
            // The API server ends watches after some minutes: the next one goes on where it ended.
            while !sender.is_closed() {
                if let Err(error) = follow(&api, &mut version, &sender).await {
                    let _ = sender.send(Err(error.to_string())).await;
                    return;
                }
            }
        });
        Ok(Watch(receiver))
    }

    /// The first sight of an object for which the predicate holds.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        limit: Duration,
        mut holds: impl FnMut(&K) -> bool,
    ) -> Result<Sight<K>, Failure> {
        let search = async {
            loop {
                match self.0.recv().await {
                    Some(Ok(sight)) if holds(&sight.object) => return Ok(sight),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(Failure::from(format!("the watch broke: {error}"))),
                    None => return Err("the watch ended".into()),
                }
            }
        };
        tokio::time::timeout(limit, search)
            .await
            .map_err(|_| format!("{what}: not within {limit:?}"))?
    }
}

async fn follow<K>(
    api: &Api<K>,
    version: &mut String,
    sender: &mpsc::Sender<Result<Sight<K>, String>>,
) -> Result<(), kube::Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let mut events = api.watch(&WatchParams::default(), version).await?.boxed();
    while let Some(event) = events.try_next().await? {
        let at = Instant::now();
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                *version = object.resource_version().unwrap_or_default();
                if sender.send(Ok(Sight { at, object })).await.is_err() {
                    return Ok(());
                }
            }
            WatchEvent::Deleted(object) => *version = object.resource_version().unwrap_or_default(),
            WatchEvent::Bookmark(bookmark) => *version = bookmark.metadata.resource_version,
            WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_series_and_no_longer_name_counts() {
        let text = "# HELP a_total x\na_total{b=\"1\"} 2\na_total{b=\"2\"} 3\na_total_more 7\n";
        assert!((sum_of(text, "a_total") - 5.0).abs() < f64::EPSILON);
        assert!((sum_of("a 4\n", "a") - 4.0).abs() < f64::EPSILON);
        assert!(sum_of(text, "other").abs() < f64::EPSILON);
    }
}
