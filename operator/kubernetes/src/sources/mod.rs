//! Sources that only a cluster has: ConfigMaps and Secrets of the job's namespace, web servers, foreign buckets.
//!
//! Owns what a job may read and how it gets here. Does not own hashes and uploads: the coordinator checks and keeps
//! what comes. Objects are read by `get` only, so that a job can't find out what else there is.

mod address;
mod bucket;
mod download;
mod objects;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use kube::Client;
use prover_coordinator::{
    ClusterSources, FetchedContent, FetchedSource, RemoteError, RemoteProblem, SourceRequest,
};
use prover_crds::{HttpSource, Place};
use prover_runtime::Clock;
use url::Url;

pub use address::{is_public, refused_host};
use download::{Downloader, Fetch};
pub use download::{Resolve, SystemResolver};
use objects::Objects;

/// Hosts whose addresses may be private and to which redirects may lead: `host` or `host:port`. Asked for each
/// download, since the ProverCluster may change.
pub type AllowedHosts = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// Fetches the sources of jobs.
pub struct KubernetesSources {
    objects: Objects,
    downloader: Downloader,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for KubernetesSources {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("KubernetesSources")
            .finish_non_exhaustive()
    }
}

impl KubernetesSources {
    /// Sources as the cluster of `client` has them.
    pub fn new(client: Client, allowed: AllowedHosts, clock: Arc<dyn Clock>) -> Self {
        Self::with_resolver(client, allowed, clock, Arc::new(SystemResolver))
    }

    /// The same with another way to find addresses of names.
    pub fn with_resolver(
        client: Client,
        allowed: AllowedHosts,
        clock: Arc<dyn Clock>,
        resolver: Arc<dyn Resolve>,
    ) -> Self {
        KubernetesSources {
            objects: Objects::new(client),
            downloader: Downloader::new(allowed, resolver),
            clock,
        }
    }

    async fn http(
        &self,
        namespace: &str,
        source: &HttpSource,
        limit_bytes: u64,
    ) -> Result<FetchedSource, RemoteError> {
        let url = Url::parse(&source.url)
            .map_err(|error| problem(RemoteProblem::Unreadable, format!("url is malformed: {error}")))?;
        let token = match &source.token_ref {
            Some(reference) => Some(self.objects.token(namespace, reference).await?),
            None => None,
        };
        let origin = format!("{:?}", shown(&url));
        let headers = token
            .map(|token| ("authorization".to_owned(), format!("Bearer {token}")))
            .into_iter()
            .collect();
        let file = self
            .downloader
            .download(&Fetch {
                url,
                headers,
                limit_bytes,
                redirects: true,
            })
            .await?;
        Ok(FetchedSource {
            origin,
            content: FetchedContent::File(Arc::new(file)),
        })
    }
}

#[async_trait]
impl ClusterSources for KubernetesSources {
    async fn fetch(&self, request: SourceRequest<'_>) -> Result<FetchedSource, RemoteError> {
        let (namespace, limit_bytes) = (request.namespace, request.limit_bytes);
        match request.place {
            Place::ConfigMap(reference) => self.objects.config_map(namespace, reference, limit_bytes).await,
            Place::Secret(reference) => self.objects.secret(namespace, reference, limit_bytes).await,
            Place::Http(source) => self.http(namespace, source, limit_bytes).await,
            Place::S3(source) => {
                let credentials = match &source.credentials_ref {
                    Some(reference) => Some(self.objects.credentials(namespace, &reference.name).await?),
                    None => None,
                };
                let now = self.clock.now_milliseconds();
                let (origin, fetch) = bucket::fetch(source, credentials.as_ref(), limit_bytes, now)?;
                let file = self.downloader.download(&fetch).await?;
                Ok(FetchedSource {
                    origin,
                    content: FetchedContent::File(Arc::new(file)),
                })
            }
            // The coordinator reads these itself, or refuses them.
            Place::Inline(_) | Place::Text(_) | Place::File(_) => Err(problem(
                RemoteProblem::NotAllowed,
                "this is no source of a cluster".to_owned(),
            )),
        }
    }
}

fn problem(problem: RemoteProblem, message: String) -> RemoteError {
    RemoteError { problem, message }
}

/// An address as messages show it: what follows the path may be secret.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Both fail only where there is nothing to remove.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}
