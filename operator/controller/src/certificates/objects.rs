//! The three objects on the API server: reading them into a [`State`], writing what a step changed.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use prover_crds::{ProverCluster, names};

use super::issue::{AuthorityCertificate, read_authority, read_bundle, read_leaf};
use super::plan::{Fingerprint, Step};
use super::state::{Changed, State};
use super::{Versions, authority_secret};
use crate::api::{ApiError, call, call_opt};
use crate::{ClusterKey, Context};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const PREVIOUS: &str = "previous.crt";
const BUNDLE: &str = "ca.crt";
/// Annotation of the bundle: since when each authority has been in it, as JSON.
const PUBLISHED: &str = "proving.rs/published";
/// Value of [`names::COMPONENT_LABEL`] of an authority's Secret.
const AUTHORITY_COMPONENT: &str = "authority";
const TLS_TYPE: &str = "kubernetes.io/tls";

/// What lies on the API server.
pub(super) struct Objects {
    pub(super) state: State,
    key: ClusterKey,
    uid: String,
    versions: Versions,
    /// The three objects had been made before.
    was_set_up: bool,
}

fn text(secret: &Secret, name: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(name)?;
    String::from_utf8(bytes.0.clone()).ok()
}

impl Objects {
    pub(super) async fn read(
        context: &Context,
        cluster: &ProverCluster,
        key: &ClusterKey,
        uid: &str,
    ) -> Result<Objects, ApiError> {
        let client = &context.client;
        let own_secrets: Api<Secret> = Api::namespaced(client.clone(), &context.settings.namespace);
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &key.namespace);
        let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), &key.namespace);
        let (own_name, leaf_name, bundle_name) = (
            authority_secret(uid),
            names::tls_secret(&key.name),
            names::ca_bundle(&key.name),
        );
        let (authority, leaf, bundle) = tokio::try_join!(
            call_opt("read the authority's Secret", own_secrets.get_opt(&own_name)),
            call_opt("read the certificate's Secret", secrets.get_opt(&leaf_name)),
            call_opt(
                "read the bundle of authorities",
                config_maps.get_opt(&bundle_name)
            ),
        )?;
        let (authority, leaf, bundle) = (authority.flatten(), leaf.flatten(), bundle.flatten());
        // A leftover of a cluster of this name that was deleted belongs to another uid.
        let bundle = bundle.filter(|bundle| is_owned_by(bundle, cluster));
        let leaf_secret = leaf.filter(|leaf| is_owned_by(leaf, cluster));
        let pair = |secret: &Secret, certificate, key| Some((text(secret, certificate)?, text(secret, key)?));
        let authority_of = |certificate, key| {
            let (certificate, key) = pair(authority.as_ref()?, certificate, key)?;
            read_authority(&certificate, &key)
        };
        let leaf = leaf_secret.as_ref().and_then(|secret| {
            let (certificate, key) = pair(secret, CERTIFICATE, KEY)?;
            read_leaf(&certificate, &key)
        });
        let previous = authority
            .as_ref()
            .and_then(|secret| read_bundle(&text(secret, PREVIOUS)?));
        Ok(Objects {
            state: State {
                current: authority_of(CERTIFICATE, KEY),
                next: authority_of(NEXT_CERTIFICATE, NEXT_KEY),
                previous: previous.unwrap_or_default(),
                published: bundle.as_ref().map(published).unwrap_or_default(),
                bundle: bundle
                    .as_ref()
                    .and_then(|map| read_bundle(map.data.as_ref()?.get(BUNDLE)?)),
                leaf,
            },
            key: key.clone(),
            uid: uid.to_owned(),
            was_set_up: authority.is_some() || bundle.is_some() || leaf_secret.is_some(),
            versions: Versions {
                authority: authority.and_then(|object| object.resource_version()),
                bundle: bundle.and_then(|object| object.resource_version()),
                leaf: leaf_secret.and_then(|object| object.resource_version()),
            },
        })
    }

    /// Whether a step replaces something that had been there and is gone or unreadable now.
    pub(super) fn is_replacing(&self, step: &Step) -> bool {
        let state = &self.state;
        self.was_set_up
            && match step {
                Step::CreateAuthority => true,
                Step::PublishBundle(wanted) => {
                    // A bundle that lacks or has nothing but a successor or a predecessor is in the middle of a rotation.
                    let current = state.current.as_ref().map(|authority| &authority.certificate.id);
                    let has = |id: &Fingerprint| {
                        state
                            .bundle
                            .iter()
                            .flatten()
                            .any(|certificate| certificate.id == *id)
                    };
                    let foreign = state.bundle.iter().flatten().any(|certificate| {
                        !wanted.contains(&certificate.id) && !state.published.contains_key(&certificate.id)
                    });
                    foreign || !current.is_some_and(has) && state.previous.is_empty()
                }
                Step::IssueLeaf(super::LeafReason::Missing) => true,
                _ => false,
            }
    }

    pub(super) fn versions(&self) -> Versions {
        self.versions.clone()
    }

    pub(super) fn bundle_pem(&self) -> String {
        concatenated(self.state.bundle.iter().flatten())
    }

    pub(super) async fn write(
        &mut self,
        context: &Context,
        cluster: &ProverCluster,
        changed: Changed,
    ) -> Result<(), ApiError> {
        match changed {
            Changed::Authority => {
                let secret = self.authority();
                let api = Api::namespaced(context.client.clone(), &context.settings.namespace);
                self.versions.authority = apply(&api, "write the authority's Secret", &secret).await?;
            }
            Changed::Bundle => {
                let map = self.bundle(cluster);
                let api = Api::namespaced(context.client.clone(), &self.key.namespace);
                self.versions.bundle = apply(&api, "write the bundle of authorities", &map).await?;
            }
            Changed::Leaf => {
                let secret = self.leaf(cluster);
                let api: Api<Secret> = Api::namespaced(context.client.clone(), &self.key.namespace);
                self.versions.leaf = match apply(&api, "write the certificate's Secret", &secret).await {
                    // A Secret of another type can't become one of this type.
                    Err(error) if error.category() == "api_invalid" => {
                        delete(
                            &api,
                            "delete a Secret in the place of the certificate's",
                            &secret.name_any(),
                        )
                        .await?;
                        apply(&api, "write the certificate's Secret", &secret).await?
                    }
                    written => written?,
                };
            }
            Changed::Nothing => {}
        }
        Ok(())
    }

    fn labels(&self, component: &str) -> BTreeMap<String, String> {
        let labels = [
            (names::NAME_LABEL, names::PROJECT),
            (names::MANAGED_BY_LABEL, names::PROJECT),
            (names::COMPONENT_LABEL, component),
            (names::CLUSTER_LABEL, &self.key.name),
            (names::CLUSTER_NAMESPACE_LABEL, &self.key.namespace),
        ];
        labels
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    fn authority(&self) -> Secret {
        let mut data = BTreeMap::new();
        let mut put =
            |name: &str, text: &str| data.insert(name.to_owned(), ByteString(text.as_bytes().to_vec()));
        if let Some(current) = &self.state.current {
            put(CERTIFICATE, &current.certificate.pem);
            put(KEY, &current.key_pem);
        }
        if let Some(next) = &self.state.next {
            put(NEXT_CERTIFICATE, &next.certificate.pem);
            put(NEXT_KEY, &next.key_pem);
        }
        if !self.state.previous.is_empty() {
            put(PREVIOUS, &concatenated(self.state.previous.iter()));
        }
        Secret {
            metadata: ObjectMeta {
                name: Some(authority_secret(&self.uid)),
                labels: Some(self.labels(AUTHORITY_COMPONENT)),
                // A key is lost if another writes between reading and writing: then this write is refused.
                resource_version: self.versions.authority.clone(),
                ..ObjectMeta::default()
            },
            data: Some(data),
            ..Secret::default()
        }
    }

    fn bundle(&self, cluster: &ProverCluster) -> ConfigMap {
        let published = serde_json::to_string(&self.state.published).unwrap_or_default();
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(names::ca_bundle(&self.key.name)),
                labels: Some(self.labels(names::COORDINATOR)),
                annotations: Some([(PUBLISHED.to_owned(), published)].into()),
                owner_references: cluster.controller_owner_ref(&()).map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            data: Some([(BUNDLE.to_owned(), self.bundle_pem())].into()),
            ..ConfigMap::default()
        }
    }

    fn leaf(&self, cluster: &ProverCluster) -> Secret {
        let leaf = self.state.leaf.as_ref();
        let bytes =
            |text: Option<&String>| ByteString(text.map(|text| text.as_bytes().to_vec()).unwrap_or_default());
        Secret {
            metadata: ObjectMeta {
                name: Some(names::tls_secret(&self.key.name)),
                labels: Some(self.labels(names::COORDINATOR)),
                owner_references: cluster.controller_owner_ref(&()).map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            type_: Some(TLS_TYPE.to_owned()),
            data: Some(
                [
                    (CERTIFICATE.to_owned(), bytes(leaf.map(|leaf| &leaf.pem))),
                    (KEY.to_owned(), bytes(leaf.map(|leaf| &leaf.key_pem))),
                ]
                .into(),
            ),
            ..Secret::default()
        }
    }
}

fn concatenated<'a>(certificates: impl Iterator<Item = &'a AuthorityCertificate>) -> String {
    certificates.map(|certificate| certificate.pem.as_str()).collect()
}

fn published(map: &ConfigMap) -> BTreeMap<Fingerprint, u64> {
    let annotation = map.annotations().get(PUBLISHED);
    annotation
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

fn is_owned_by<K: Resource<DynamicType = ()>>(object: &K, cluster: &ProverCluster) -> bool {
    let uid = cluster.uid();
    object
        .owner_references()
        .iter()
        .all(|owner| Some(&owner.uid) == uid.as_ref())
}

async fn apply<K>(api: &Api<K>, what: &'static str, object: &K) -> Result<Option<String>, ApiError>
where
    K: Resource<DynamicType = ()> + Clone + serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let parameters = PatchParams::apply(names::OPERATOR_MANAGER).force();
    let written = call(
        what,
        api.patch(&object.name_any(), &parameters, &Patch::Apply(object)),
    )
    .await?;
    Ok(written.resource_version())
}

async fn delete(api: &Api<Secret>, what: &'static str, name: &str) -> Result<(), ApiError> {
    call_opt(what, api.delete(name, &DeleteParams::default()))
        .await
        .map(|_| ())
}

pub(super) async fn delete_authority(context: &Context, uid: &str) -> Result<(), ApiError> {
    let api = Api::namespaced(context.client.clone(), &context.settings.namespace);
    delete(&api, "delete the authority's Secret", &authority_secret(uid)).await
}
