//! The API server's public keys: fetched, kept, fetched again when they change, never more often than a limit.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::Request;
use jsonwebtoken::jwk::JwkSet;
use kube::Client;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::token::KeySet;

/// Shortest time between two fetches, whoever wants them.
pub(super) const FETCH_INTERVAL: Duration = Duration::from_secs(10);
/// Age at which keys are fetched again although nothing is missed, so that a withdrawn key goes.
const REFRESH_AGE: Duration = Duration::from_secs(300);
/// Longest wait for an answer of the API server.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Most keys that are read.
const ANSWER_BYTES: usize = 1 << 20;

/// Why keys could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeysError {
    #[error("the API server did not answer {path} within {} s", CALL_LIMIT.as_secs())]
    Timeout { path: &'static str },
    #[error("the API server did not give out {path}: {source}")]
    Refused {
        path: &'static str,
        source: Box<kube::Error>,
    },
    #[error("what the API server says under {path} is not understood: {problem}")]
    Malformed { path: &'static str, problem: String },
    #[error("the API server was asked a moment ago")]
    TooSoon,
}

impl KeysError {
    pub(super) fn category(&self) -> &'static str {
        match self {
            KeysError::Timeout { .. } => "timeout",
            KeysError::Refused { .. } => "refused",
            KeysError::Malformed { .. } => "malformed",
            KeysError::TooSoon => "too_soon",
        }
    }
}

#[derive(Debug, Default)]
struct Fetching {
    last_try: Option<Instant>,
}

/// The keys as they were fetched last. A failed fetch leaves them as they are.
pub(super) struct Keys {
    client: Client,
    known: RwLock<Option<(Arc<KeySet>, Instant)>>,
    fetching: Mutex<Fetching>,
}

impl Keys {
    pub(super) fn new(client: Client) -> Keys {
        Keys {
            client,
            known: RwLock::new(None),
            fetching: Mutex::new(Fetching::default()),
        }
    }

    /// What is known, and whether it has grown old.
    pub(super) fn known(&self) -> Option<(Arc<KeySet>, bool)> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known
            .as_ref()
            .map(|(keys, fetched)| (Arc::clone(keys), fetched.elapsed() >= REFRESH_AGE))
    }

    /// Fetches the keys, unless somebody did a moment ago: then what came of that counts. Callers wait for each
    /// other, so that one answer serves them all. `seen` is what the caller found wanting.
    pub(super) async fn refresh(&self, seen: Option<&Arc<KeySet>>) -> Result<Arc<KeySet>, KeysError> {
        let mut fetching = self.fetching.lock().await;
        if let Some((known, _)) = self.known()
            && seen.is_none_or(|seen| !Arc::ptr_eq(seen, &known))
        {
            return Ok(known);
        }
        if fetching
            .last_try
            .is_some_and(|last| last.elapsed() < FETCH_INTERVAL)
        {
            return Err(KeysError::TooSoon);
        }
        fetching.last_try = Some(Instant::now());
        let keys = Arc::new(self.fetch().await?);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        *known = Some((Arc::clone(&keys), Instant::now()));
        Ok(keys)
    }

    async fn fetch(&self) -> Result<KeySet, KeysError> {
        const DISCOVERY: &str = "/.well-known/openid-configuration";
        const KEYS: &str = "/openid/v1/jwks";
        #[derive(Deserialize)]
        struct Discovery {
            issuer: String,
        }
        let discovery: Discovery = self.get(DISCOVERY).await?;
        let set: JwkSet = self.get(KEYS).await?;
        let keys = KeySet::new(discovery.issuer, &set);
        if keys.is_empty() {
            return Err(KeysError::Malformed {
                path: KEYS,
                problem: "there is no key for RS256 or ES256".to_owned(),
            });
        }
        Ok(keys)
    }

    async fn get<T: DeserializeOwned>(&self, path: &'static str) -> Result<T, KeysError> {
        let malformed = |problem: String| KeysError::Malformed { path, problem };
        let request = Request::get(path)
            .body(Vec::new())
            .map_err(|error| malformed(error.to_string()))?;
        let text = tokio::time::timeout(CALL_LIMIT, self.client.request_text(request))
            .await
            .map_err(|_| KeysError::Timeout { path })?
            .map_err(|source| KeysError::Refused {
                path,
                source: Box::new(source),
            })?;
        if text.len() > ANSWER_BYTES {
            return Err(malformed(format!("it has {} bytes", text.len())));
        }
        serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))
    }
}
