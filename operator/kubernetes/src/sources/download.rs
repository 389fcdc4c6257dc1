//! Downloads from servers that a user named: to addresses that were looked at, and no others.
//!
//! Each hop resolves its host once, judges what it found, and connects to exactly that, so that a name can't lead
//! elsewhere between the look and the connection. No proxy of the environment comes in between.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use http::StatusCode;
use http::header::LOCATION;
use prover_coordinator::{RemoteError, RemoteProblem};
use reqwest::redirect::Policy;
use reqwest::{Client, Response};
use tempfile::{NamedTempFile, TempPath};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use url::{Host, Url};

use super::{AllowedHosts, address, problem, shown};

/// Longest wait for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for the next bytes.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// Longest download with all its tries.
const WHOLE_LIMIT: Duration = Duration::from_secs(1_800);
/// Redirects of one download.
const REDIRECTS: usize = 5;
/// Tries of one download.
const TRIES: u32 = 3;
/// Wait before the second try; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Downloads at once; further ones wait.
const DOWNLOADS: usize = 8;
/// Addresses of one host that are tried.
const ADDRESSES: usize = 16;

/// Finds the addresses of names.
#[async_trait]
pub trait Resolve: Send + Sync {
    /// The addresses of a host.
    ///
    /// # Errors
    /// The name is unknown, or nobody can be asked.
    async fn addresses(&self, host: &str) -> std::io::Result<Vec<IpAddr>>;
}

/// Asks the system.
#[derive(Clone, Copy, Debug)]
pub struct SystemResolver;

#[async_trait]
impl Resolve for SystemResolver {
    async fn addresses(&self, host: &str) -> std::io::Result<Vec<IpAddr>> {
        let found = tokio::net::lookup_host((host, 0)).await?;
        Ok(found.map(|address| address.ip()).collect())
    }
}

/// What is to be downloaded.
pub(super) struct Fetch {
    pub(super) url: Url,
    /// Sent to the first host only.
    pub(super) headers: Vec<(String, String)>,
    pub(super) limit_bytes: u64,
    pub(super) redirects: bool,
}

/// Downloads into files.
pub(super) struct Downloader {
    allowed: AllowedHosts,
    resolver: Arc<dyn Resolve>,
    places: Semaphore,
}

impl Downloader {
    pub(super) fn new(allowed: AllowedHosts, resolver: Arc<dyn Resolve>) -> Downloader {
        // The provider of the process is what the client of each hop takes; who was first stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Downloader {
            allowed,
            resolver,
            places: Semaphore::new(DOWNLOADS),
        }
    }

    /// Downloads into a file of the folder for temporary files.
    pub(super) async fn download(&self, fetch: &Fetch) -> Result<TempPath, RemoteError> {
        // The semaphore is never closed.
        let _place = self.places.acquire().await.ok();
        match tokio::time::timeout(WHOLE_LIMIT, self.try_often(fetch)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(problem(
                RemoteProblem::Transient,
                format!(
                    "{} did not come within {} s",
                    shown(&fetch.url),
                    WHOLE_LIMIT.as_secs()
                ),
            )),
        }
    }

    async fn try_often(&self, fetch: &Fetch) -> Result<TempPath, RemoteError> {
        let mut wait = FIRST_WAIT;
        for _ in 1..TRIES {
            match self.try_once(fetch).await {
                Err(error) if error.problem == RemoteProblem::Transient => {
                    tracing::info!(%error, ?wait, "a source is tried again");
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                }
                outcome => return outcome,
            }
        }
        self.try_once(fetch).await
    }

    async fn try_once(&self, fetch: &Fetch) -> Result<TempPath, RemoteError> {
        let mut url = fetch.url.clone();
        for hop in 0..=REDIRECTS {
            let response = self
                .ask(&url, fetch, hop == 0 || same_origin(&url, &fetch.url))
                .await?;
            let status = response.status();
            if status.is_success() {
                return save(response, &url, fetch.limit_bytes).await;
            }
            if !status.is_redirection() || status == StatusCode::NOT_MODIFIED {
                return Err(answer(&url, status));
            }
            url = self.redirected(&url, &response, fetch)?;
        }
        Err(problem(
            RemoteProblem::Unreadable,
            format!(
                "{} leads through more than {REDIRECTS} redirects",
                shown(&fetch.url)
            ),
        ))
    }

    /// Where a redirect leads, if it may lead there.
    fn redirected(&self, from: &Url, response: &Response, fetch: &Fetch) -> Result<Url, RemoteError> {
        let target = response
            .headers()
            .get(LOCATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|target| from.join(target).ok())
            .ok_or_else(|| {
                problem(
                    RemoteProblem::Unreadable,
                    format!("{} redirects to nowhere", shown(from)),
                )
            })?;
        let refused = |why: &str| {
            let message = format!("{} redirects to {}, {why}", shown(from), shown(&target));
            Err(problem(RemoteProblem::NotAllowed, message))
        };
        if !fetch.redirects {
            return refused("where nothing may redirect: correct the region or the endpoint");
        }
        if from.scheme() == "https" && target.scheme() != "https" {
            return refused("without encryption");
        }
        if !same_origin(&target, &fetch.url) && !self.is_allowed(&target) {
            return refused("which spec.limits.allowedHttpHosts of the ProverCluster does not name");
        }
        Ok(target)
    }

    fn is_allowed(&self, url: &Url) -> bool {
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return false;
        };
        let host = host.trim_matches(['[', ']']);
        let with_port = format!("{host}:{port}");
        (self.allowed)()
            .iter()
            .any(|allowed| *allowed == host || *allowed == with_port)
    }

    async fn ask(&self, url: &Url, fetch: &Fetch, with_headers: bool) -> Result<Response, RemoteError> {
        let client = self.client(url).await?;
        let mut request = client.get(url.clone());
        for (name, value) in fetch.headers.iter().filter(|_| with_headers) {
            request = request.header(name, value);
        }
        request.send().await.map_err(|error| broken(url, error))
    }

    /// A client that can reach this host at the addresses that were judged, and nothing else.
    async fn client(&self, url: &Url) -> Result<Client, RemoteError> {
        let not_allowed = |message: String| problem(RemoteProblem::NotAllowed, message);
        if !matches!(url.scheme(), "http" | "https") {
            let message = format!("{} is neither http nor https", shown(url));
            return Err(not_allowed(message));
        }
        if !url.username().is_empty() || url.password().is_some() {
            let message = "the address carries a password: put it into a Secret and name that in tokenRef";
            return Err(not_allowed(message.to_owned()));
        }
        let (host, literal) = match url.host() {
            Some(Host::Ipv4(address)) => (address.to_string(), Some(IpAddr::V4(address))),
            Some(Host::Ipv6(address)) => (address.to_string(), Some(IpAddr::V6(address))),
            Some(Host::Domain(name)) => (name.to_owned(), None),
            None => return Err(not_allowed(format!("{} names no host", shown(url)))),
        };
        let addresses = match literal {
            Some(address) => vec![address],
            None => self.resolve(&host).await?,
        };
        if !self.is_allowed(url)
            && let Some(refused) = address::refused_host(&addresses)
        {
            let message = format!(
                "{host} is at {refused}, an address that is not of the internet: name the host in \
                 spec.limits.allowedHttpHosts of the ProverCluster if jobs may read from it"
            );
            return Err(not_allowed(message));
        }
        let pinned: Vec<SocketAddr> = addresses
            .iter()
            .map(|address| SocketAddr::new(*address, 0))
            .collect();
        let mut builder = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .referer(false)
            .connect_timeout(CONNECT_LIMIT)
            .read_timeout(SILENCE_LIMIT)
            .pool_max_idle_per_host(0);
        if literal.is_none() {
            builder = builder.resolve_to_addrs(&host, &pinned);
        }
        builder.build().map_err(|error| {
            let message = format!("no connection can be made: {error}");
            problem(RemoteProblem::Transient, message)
        })
    }

    async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, RemoteError> {
        let found = tokio::time::timeout(CONNECT_LIMIT, self.resolver.addresses(host)).await;
        let transient = |why: String| {
            let message = format!("the address of {host} can't be found: {why}");
            Err(problem(RemoteProblem::Transient, message))
        };
        match found {
            Ok(Ok(addresses)) if !addresses.is_empty() => Ok(addresses.into_iter().take(ADDRESSES).collect()),
            Ok(Ok(_)) => transient("it has none".to_owned()),
            Ok(Err(error)) => transient(error.to_string()),
            Err(_) => transient("nobody answered in time".to_owned()),
        }
    }
}

fn same_origin(one: &Url, other: &Url) -> bool {
    (one.scheme(), one.host_str(), one.port_or_known_default())
        == (other.scheme(), other.host_str(), other.port_or_known_default())
}

/// What an answer without content means.
fn answer(url: &Url, status: StatusCode) -> RemoteError {
    let at = shown(url);
    match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => problem(
            RemoteProblem::NotFound,
            format!("there is nothing at {at} ({status})"),
        ),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => problem(
            RemoteProblem::Unreadable,
            format!("{at} refuses to be read ({status}): check the credentials"),
        ),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS | StatusCode::TOO_EARLY => {
            problem(RemoteProblem::Transient, format!("{at} is busy ({status})"))
        }
        status if status.is_server_error() => {
            problem(RemoteProblem::Transient, format!("{at} has failed ({status})"))
        }
        status => problem(
            RemoteProblem::Unreadable,
            format!("{at} answers {status}, which is no file"),
        ),
    }
}

fn broken(url: &Url, error: reqwest::Error) -> RemoteError {
    let mut words = error.without_url().to_string();
    // The cause says more than the outermost error, and the address must not be told whole.
    let certificate = words.to_ascii_lowercase().contains("certificate");
    words.truncate(512);
    let kind = if certificate {
        RemoteProblem::Unreadable
    } else {
        RemoteProblem::Transient
    };
    problem(kind, format!("{} can't be read: {words}", shown(url)))
}

fn too_large(url: &Url, limit_bytes: u64) -> RemoteError {
    problem(
        RemoteProblem::TooLarge,
        format!(
            "{} has more than the {limit_bytes} bytes that are allowed",
            shown(url)
        ),
    )
}

/// Writes the answer's content to a file, never more than allowed.
async fn save(response: Response, url: &Url, limit_bytes: u64) -> Result<TempPath, RemoteError> {
    let told = response.content_length();
    if told.is_some_and(|told| told > limit_bytes) {
        return Err(too_large(url, limit_bytes));
    }
    let unwritable = |error: std::io::Error| {
        let message = format!("there is no room for {}: {error}", shown(url));
        problem(RemoteProblem::Transient, message)
    };
    let path = NamedTempFile::new().map_err(unwritable)?.into_temp_path();
    let mut file = tokio::fs::File::create(Path::new(&path))
        .await
        .map_err(unwritable)?;
    let mut content = response.bytes_stream();
    let mut size_bytes = 0u64;
    while let Some(piece) = content.next().await {
        let piece = piece.map_err(|error| broken(url, error))?;
        size_bytes += piece.len() as u64;
        if size_bytes > limit_bytes {
            return Err(too_large(url, limit_bytes));
        }
        file.write_all(&piece).await.map_err(unwritable)?;
    }
    file.flush().await.map_err(unwritable)?;
    if told.is_some_and(|told| told != size_bytes) {
        let message = format!("{} ended after {size_bytes} bytes", shown(url));
        return Err(problem(RemoteProblem::Transient, message));
    }
    Ok(path)
}
