//! ConfigMaps and Secrets of the job's own namespace: labelled ones only, each by its name.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client, Resource};
use prover_artifacts::StaticCredentials;
use prover_coordinator::{FetchedContent, FetchedSource, RemoteError, RemoteProblem};
use prover_crds::KeyReference;
use prover_crds::names::READABLE_LABEL;
use serde::de::DeserializeOwned;

use super::problem;

/// Longest wait for an answer of the API server.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Keys of credentials in a Secret.
const ACCESS_KEY_ID: &str = "accessKeyId";
const SECRET_ACCESS_KEY: &str = "secretAccessKey";
const SESSION_TOKEN: &str = "sessionToken";

/// Reads objects.
pub(super) struct Objects {
    client: Client,
}

impl Objects {
    pub(super) fn new(client: Client) -> Objects {
        Objects { client }
    }

    pub(super) async fn config_map(
        &self,
        namespace: &str,
        reference: &KeyReference,
        limit_bytes: u64,
    ) -> Result<FetchedSource, RemoteError> {
        let object: ConfigMap = self.get("ConfigMap", namespace, &reference.name).await?;
        let binary = object.binary_data.unwrap_or_default().remove(&reference.key);
        let text = || object.data.unwrap_or_default().remove(&reference.key);
        let value = binary
            .map(|value| Bytes::from(value.0))
            .or_else(|| text().map(Bytes::from));
        found("ConfigMap", reference, value, limit_bytes)
    }

    pub(super) async fn secret(
        &self,
        namespace: &str,
        reference: &KeyReference,
        limit_bytes: u64,
    ) -> Result<FetchedSource, RemoteError> {
        let object: Secret = self.get("Secret", namespace, &reference.name).await?;
        let value = object.data.unwrap_or_default().remove(&reference.key);
        found(
            "Secret",
            reference,
            value.map(|value| Bytes::from(value.0)),
            limit_bytes,
        )
    }

    /// A token in a Secret, without the line break that editors add.
    pub(super) async fn token(
        &self,
        namespace: &str,
        reference: &KeyReference,
    ) -> Result<String, RemoteError> {
        let object: Secret = self.get("Secret", namespace, &reference.name).await?;
        text(&object.data.unwrap_or_default(), &reference.name, &reference.key)?
            .ok_or_else(|| no_key("Secret", &reference.name, &reference.key))
    }

    /// Credentials of a bucket.
    pub(super) async fn credentials(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<StaticCredentials, RemoteError> {
        let object: Secret = self.get("Secret", namespace, name).await?;
        let data = object.data.unwrap_or_default();
        let required = |key: &str| text(&data, name, key)?.ok_or_else(|| no_key("Secret", name, key));
        Ok(StaticCredentials {
            access_key_id: required(ACCESS_KEY_ID)?,
            secret_access_key: required(SECRET_ACCESS_KEY)?,
            session_token: text(&data, name, SESSION_TOKEN)?,
        })
    }

    async fn get<K>(&self, kind: &'static str, namespace: &str, name: &str) -> Result<K, RemoteError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        let api = Api::<K>::namespaced(self.client.clone(), namespace);
        let answer = tokio::time::timeout(CALL_LIMIT, api.get_opt(name)).await;
        let object = match answer {
            Ok(Ok(Some(object))) => object,
            Ok(Ok(None)) => {
                let message = format!("{kind} {name:?} does not exist in namespace {namespace}");
                return Err(problem(RemoteProblem::NotFound, message));
            }
            Ok(Err(error)) => return Err(refusal(kind, name, &error)),
            Err(_) => {
                let message = format!("the API server did not answer for {kind} {name:?} in time");
                return Err(problem(RemoteProblem::Transient, message));
            }
        };
        let labels = object.meta().labels.as_ref();
        if labels
            .and_then(|labels| labels.get(READABLE_LABEL))
            .map(String::as_str)
            != Some("true")
        {
            let message = format!(
                "{kind} {name:?} may not be read by jobs: whoever owns it allows that with the label \
                 {READABLE_LABEL}: \"true\""
            );
            return Err(problem(RemoteProblem::NotAllowed, message));
        }
        Ok(object)
    }
}

fn refusal(kind: &str, name: &str, error: &kube::Error) -> RemoteError {
    let kind_of_problem = match error {
        kube::Error::Api(status) if status.code == 403 => RemoteProblem::Unreadable,
        kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429 => {
            RemoteProblem::Unreadable
        }
        _ => RemoteProblem::Transient,
    };
    problem(kind_of_problem, format!("{kind} {name:?} can't be read: {error}"))
}

fn no_key(kind: &str, name: &str, key: &str) -> RemoteError {
    problem(
        RemoteProblem::NotFound,
        format!("{kind} {name:?} has no key {key:?}"),
    )
}

fn text(
    data: &BTreeMap<String, k8s_openapi::ByteString>,
    name: &str,
    key: &str,
) -> Result<Option<String>, RemoteError> {
    let Some(value) = data.get(key) else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&value.0).ok().map(str::trim_end);
    match text.filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')) {
        Some(text) => Ok(Some(text.to_owned())),
        None => Err(problem(
            RemoteProblem::Unreadable,
            format!("key {key:?} of Secret {name:?} is not one line of plain text"),
        )),
    }
}

fn found(
    kind: &str,
    reference: &KeyReference,
    value: Option<Bytes>,
    limit_bytes: u64,
) -> Result<FetchedSource, RemoteError> {
    let KeyReference { name, key } = reference;
    let value = value.ok_or_else(|| no_key(kind, name, key))?;
    let size_bytes = value.len() as u64;
    if size_bytes > limit_bytes {
        let message = format!(
            "key {key:?} of {kind} {name:?} has {size_bytes} bytes, more than the {limit_bytes} that are allowed"
        );
        return Err(problem(RemoteProblem::TooLarge, message));
    }
    Ok(FetchedSource {
        origin: format!("key {key:?} of {kind} {name:?}"),
        content: FetchedContent::Bytes(value),
    })
}
